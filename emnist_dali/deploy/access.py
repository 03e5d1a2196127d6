"""Who may use the server: this machine, its network if asked to, and pages of the sites that are named."""

import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError

if TYPE_CHECKING:
    import flask

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?/?", re.ASCII)


def restrict_access(app: "flask.Flask", host: str, origins: Sequence[str]) -> None:
    """Has `app`, served on the IP address `host`, answer 403 to pages of other sites than its own and `origins`."""
    from flask import Response, abort, request

    address = ip_address(host)
    names = {str(address), "localhost"} if address.is_loopback else _own_names()

    # A page of another site can reach this server through the user's browser: under its own host name, resolved to
    # this address (DNS rebinding, shown by Host), or with a cross-origin request (shown by Origin). An IP address is
    # never the name of another site: who is asked under one has it, whatever a DNS server says. So other machines may
    # use any, also one that a container or a router translates, and the names by which their network knows this one.
    @app.before_request
    def refuse_other_sites() -> None:
        header = request.headers.get("Host", "")
        name = _host_name(header)
        if name not in names and (address.is_loopback or not _is_address(name)):
            # Other sites read this, too, so it does not tell the names of this machine.
            own = f"{address} and localhost" if address.is_loopback else "an IP address or a name of this machine"
            abort(403, f"Only requests to {own} are answered.")
        if request.headers.get("Origin", f"http://{header}") not in (f"http://{header}", *origins):
            abort(403, "Requests from other sites are not answered.")

    @app.after_request
    def let_allowed_sites_read(response: Response) -> Response:
        response.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin in origins:
            response.access_control_allow_origin = origin
            response.access_control_expose_headers = ["Retry-After"]
            if request.method == "OPTIONS":
                response.access_control_allow_methods = ["GET", "POST"]
                response.access_control_allow_headers = ["Content-Type"]
        return response


def parse_origin(text: str) -> str:
    """A site as browsers write it: in lower case, without a path, and without the scheme's own port."""
    match = _ORIGIN.fullmatch(text.lower())
    if not match:
        raise UserError(
            f"--allow-origin is {text!r}; give a site's scheme, host and port if it has one: https://example.org."
        )
    scheme, host, port = match.groups(default="")
    return f"{scheme}://{host}{port if port != {'http': ':80', 'https': ':443'}[scheme] else ''}"


def _own_names() -> set[str]:
    """This machine's host name, alone, with its domain and as in mDNS."""
    name = socket.gethostname().lower()
    first = name.split(".")[0]
    return {"localhost", name, first, f"{first}.local"}


def _host_name(header: str) -> str | None:
    """The name or the IP address in a Host header, without its port; None if it is malformed."""
    match = _HOST.fullmatch(header)
    return (match[1] or match[2]).lower() if match else None


def _is_address(name: Any) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
