"""A web page to draw characters on, and its HTTP API, for this machine unless told otherwise."""

import base64
import errno
import io
import json
import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..core.errors import UserError
from ..core.progress import say
from ..reports.html import png
from ..runs.classifier import Classifier, load_classifier
from .answers import to_answer, to_text_answer
from .decoder import BusyError, Decoder
from .emnist_style import Glyph
from .page import render_page
from .query import Query, parse_query
from .reading import Form, Writing, read

if TYPE_CHECKING:
    import flask
    from waitress.server import BaseWSGIServer

Found = TypeVar("Found")

HOST = "127.0.0.1"
# A phone's photograph has 2 to 6 MiB.
MAX_BODY = 8 * 2**20
# Images in one request: they pass through the model in one call, during which every other request waits.
MAX_IMAGES = 32
# Images in one call of the model, which takes some hundredths of a second.
MAX_BATCH = 512
# Brackets, commas and colons in a JSON body: ours have three per image, as a data: URL in a list, and a few more;
# millions of them become 100 MB of Python objects.
MAX_JSON_SYMBOLS = 4 * MAX_IMAGES
# Requests that may wait for the decoder and the model, which take them one after the other. A small picture takes
# some hundredths of a second, so the last of them waits for a second or two; whoever comes then does better to try
# again than to keep a body of up to MAX_BODY here. Many more than `decoder.MAX_LARGE_WAITING`, so that waiting large
# pictures leave room for small ones.
MAX_REQUESTS = 64
RETRY_AFTER = 2  # seconds
# The others refuse further requests, and answer those that need neither decoder nor model.
THREADS = MAX_REQUESTS + 8
CONNECTIONS = 512
# Seconds: until more of a request must arrive, for a whole request to arrive, and until no more of its images are
# decoded.
IDLE_TIMEOUT, REQUEST_TIMEOUT, DECODING_TIMEOUT = 5, 30, 30
_FORMS = 'as the body, as {"image": base64 or a data: URL} in JSON, or as the file "image" of a form'
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?/?", re.ASCII)


class _OneThread:
    """A classifier whose calls are made in one thread: OpenMP keeps a pool of threads for each thread that calls it.

    The thousands of candidates of a page pass through it in turns with the images of other requests.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.name, self.classes = classifier.name, classifier.classes
        self.shape, self.converted = classifier.shape, classifier.converted
        self.thresholds, self.typicality = classifier.thresholds, classifier.typicality
        self._classifier, self._thread = classifier, ThreadPoolExecutor(1)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """As `Classifier.probabilities`."""
        batches = [images[start : start + MAX_BATCH] for start in range(0, max(1, len(images)), MAX_BATCH)]
        call = self._classifier.probabilities
        return np.concatenate([self._thread.submit(call, batch).result() for batch in batches])


def serve(model: Path, port: int, host: str = HOST, allow_origin: Sequence[str] = ()) -> None:
    """Serves `create_app` on the IP address `host` until Ctrl-C; port 0 takes a free one.

    Says where it can be reached, and who else can use it because of `host` and `allow_origin`, the origins of other
    sites. Raises UserError if one of them is malformed, if the address or the port cannot be used, if the model
    cannot be loaded, or if flask or waitress is missing.
    """
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} could not be imported ({error}); pip install 'emnist-dali[serve]'.") from error
    origins = [_parse_origin(text) for text in allow_origin]
    with _listen(host, port) as listener:
        server = create_server(create_app(load_classifier(model), host, origins), listener)
        url = f"http://{_reachable_as(host)}:{server.effective_port}"
        say(f"Draw at {url} (Ctrl-C to stop)")
        if not ip_address(host).is_loopback:
            if code := _qr_code(url):
                say(code)
            say(
                "Every device that reaches this machine can use it, without a password or encryption; "
                "leave out --host to serve this machine only."
            )
        if origins:
            say(f"Pages of {', '.join(origins)} can use it, too, from every browser that reaches it.")
        server.run()


def _parse_origin(text: str) -> str:
    """As browsers write it: in lower case, without a path, and without the scheme's own port."""
    match = _ORIGIN.fullmatch(text.lower())
    if not match:
        raise UserError(
            f"--allow-origin is {text!r}; give a site's scheme, host and port if it has one: https://example.org."
        )
    scheme, host, port = match.groups(default="")
    return f"{scheme}://{host}{port if port != {'http': ':80', 'https': ':443'}[scheme] else ''}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        ipv6 = ip_address(host).version == 6
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, ValueError) as error:
        foreign = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL, socket.EAI_NONAME)
        if isinstance(error, ValueError) or error.errno in foreign:
            raise UserError(
                f"--host is {host!r}; give an IP address of this machine, 0.0.0.0 for all of them, or leave it out."
            ) from error
        raise UserError(
            f"Port {port} of {host} cannot be used ({os.strerror(error.errno)}); "
            f"choose another --port, or 0 for a free one."
        ) from error


def _reachable_as(host: str) -> str:
    """`host` for a URL; in place of 0.0.0.0 or ::, this machine's address in its network."""
    if ip_address(host).is_unspecified:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                # Sends nothing: for UDP, it only looks up the route to that address (for documentation, RFC 5737).
                probe.connect(("198.51.100.1", 9))
                return probe.getsockname()[0]
            except OSError:  # no route
                return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _qr_code(url: str) -> str | None:
    """`url` as a QR code in text, where stdout is a terminal that can show it and segno is installed."""
    if not sys.stdout.isatty():
        return None
    try:
        import segno

        code = io.StringIO()
        segno.make(url, micro=False).terminal(code, border=2, compact=True)
        code.getvalue().encode(sys.stdout.encoding)
    except (ImportError, UnicodeError):
        return None
    return code.getvalue().rstrip("\n")


def create_server(app: "flask.Flask", listener: socket.socket) -> "BaseWSGIServer":
    """A server of `app` on `listener`, started by `run`, that withstands hostile clients.

    A body of more than MAX_BODY is refused by its Content-Length, or once it has sent that much. A connection is
    closed after IDLE_TIMEOUT without data, and if a request takes REQUEST_TIMEOUT, however steadily it trickles in.
    """
    import waitress
    from waitress.channel import HTTPChannel

    class Channel(HTTPChannel):
        start = 0.0

        def received(self, data: bytes) -> bool:
            if self.request is None:
                self.start = time.monotonic()
            elif time.monotonic() > self.start + REQUEST_TIMEOUT:
                self.will_close = True
            return super().received(data)

    _allow_open_files(3 * CONNECTIONS)
    logging.getLogger("waitress").setLevel(logging.ERROR)  # it warns about each waiting request
    server = waitress.create_server(
        app,
        sockets=[listener],
        threads=THREADS,
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE_TIMEOUT,
        cleanup_interval=1,
        max_request_body_size=MAX_BODY + 1,  # the first size that is refused
        max_request_header_size=2**14,
        recv_bytes=2**17,  # fewer iterations of its loop for a photograph
        asyncore_use_poll=True,  # select() cannot handle descriptors from 1024 on
        log_socket_errors=False,  # when clients hang up
    )
    server.channel_class = Channel
    return server


def _allow_open_files(number: int) -> None:
    """Raises the soft limit, which is often 1024, or 256 on macOS."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number and (hard == resource.RLIM_INFINITY or hard >= number):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def create_app(classifier: Classifier, host: str = HOST, origins: Sequence[str] = ()) -> "flask.Flask":
    """The page and the API on the IP address `host`, for this server's own pages and those of the sites `origins`.

    GET / is the page, GET /classes the `model` and its `classes` in label order, and GET /healthz is answered even
    while requests are refused. POST /predict takes a picture and returns `to_answer`, with ?seen=1 also `seen`, the
    model's input as a data: URL; with ?text=1, ?boxes= or ?pattern= the `model` and `to_text_answer`; for several
    pictures, a list of such answers. `query.parse_query` reads the parameters.

    Errors are {"error": one sentence}: 400 for invalid images, 413 above MAX_BODY, 403 for other sites, 503 with
    Retry-After if too many requests or pictures are waiting. A picture among several has its error in the list.
    """
    from flask import Flask, Response, abort, request
    from werkzeug.exceptions import HTTPException

    app = Flask(__name__, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, MAX_FORM_MEMORY_SIZE=MAX_BODY)
    model = _OneThread(classifier)
    # A page takes up to PAGE_TIMEOUT, so it has a process of its own and keeps no drawing waiting.
    decode, pages = (Decoder(classifier.shape, classifier.converted) for _ in range(2))
    slots = threading.BoundedSemaphore(MAX_REQUESTS)
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

    @app.get("/")
    def draw() -> Response:
        nonce = secrets.token_urlsafe()
        response = Response(render_page(classifier, ["draw.js", "ask_server.js"], nonce=nonce, max_body=MAX_BODY))
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            f"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {"status": "ok", "model": classifier.name}

    @app.get("/classes")
    def classes() -> dict[str, Any]:
        return {"model": classifier.name, "classes": classifier.classes}

    @app.post("/predict")
    def predict() -> dict[str, Any] | list[dict[str, Any]]:
        asked = parse_query(request.args, classifier)
        find = partial(pages.find, boxes=asked.boxes) if asked.several else decode
        answer = read_all if asked.several else classify
        if not slots.acquire(blocking=False):
            raise BusyError(f"{MAX_REQUESTS} requests are waiting; try again later.")
        try:
            pictures = _read_pictures(request)
            if not isinstance(pictures, list):
                return answer([find(pictures)], asked)[0]
            found = _decode_all(pictures, find)
            answers = iter(answer([each for each in found if not isinstance(each, UserError)], asked))
            return [{"error": str(each)} if isinstance(each, UserError) else next(answers) for each in found]
        finally:
            slots.release()

    def classify(glyphs: Sequence[Glyph], asked: Query) -> list[dict[str, Any]]:
        if not glyphs:
            return []
        answers = []
        for glyph, row in zip(glyphs, model.probabilities(np.stack([glyph.image for glyph in glyphs])), strict=True):
            seen = {"seen": png(glyph.image)} if asked.seen else {}
            answers.append({**to_answer(row, classifier, asked.question, glyph.warning), **seen})
        return answers

    def read_all(found: Sequence[Writing | Form], asked: Query) -> list[dict[str, Any]]:
        readings = [read(each, model, asked.allowed, asked.pattern) for each in found]
        return [{"model": classifier.name, **to_text_answer(reading)} for reading in readings]

    @app.errorhandler(UserError)
    def handle_user_error(error: UserError) -> tuple[dict[str, str], int, dict[str, str]]:
        if isinstance(error, BusyError):
            return {"error": str(error)}, 503, {"Retry-After": str(RETRY_AFTER)}
        return {"error": str(error)}, 400, {}

    @app.errorhandler(HTTPException)
    def handle_http_error(error: HTTPException) -> Response:
        too_large = f"The body has more than {MAX_BODY // 2**20} MiB, or a form more than 1,000 parts."
        message = too_large if error.code == 413 else error.description
        response = error.get_response()  # keeps its headers, such as Allow of a 405
        response.data = json.dumps({"error": message})
        response.content_type = "application/json"
        return response

    return app


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


def _read_pictures(request: "flask.Request") -> bytes | list[Any]:
    """The image file in a request; for several, a list of them, or of what JSON has in the place of each."""
    if request.is_json:
        return _read_json(request.get_data(cache=False))
    if request.mimetype == "multipart/form-data":
        files = request.files.getlist("image")
        if not files:
            raise UserError('The form has no file "image"; add it.')
        _check_number(files)
        return [file.read() for file in files] if len(files) > 1 else files[0].read()
    content = request.get_data(cache=False)
    if not content:
        raise UserError(f"The body is empty; send an image {_FORMS}.")
    return content


def _read_json(body: bytes) -> bytes | list[Any]:
    if sum(map(body.count, (b"[", b"{", b",", b":"))) > MAX_JSON_SYMBOLS:
        raise UserError(f"The JSON has more than {MAX_IMAGES} images, or much else; send fewer at a time.")
    try:
        content = json.loads(body)
        [(name, pictures)] = [(name, content[name]) for name in ("image", "images") if name in content]
        if name == "images" and not isinstance(pictures, list):
            raise TypeError("it is no list")
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise UserError(
            'The JSON has neither an image nor a list of them; send {"image": base64 or a data: URL}, or several as '
            '{"images": [...]}.'
        ) from error
    if name == "image":
        return _decode_base64(pictures)
    _check_number(pictures)
    return pictures


def _check_number(pictures: Sequence[Any]) -> None:
    if not 1 <= len(pictures) <= MAX_IMAGES:
        raise UserError(f"The request has {len(pictures)} images; send 1 to {MAX_IMAGES} at a time.")


def _decode_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text.rpartition(",")[2])
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError("The picture is no text in base64, and no data: URL with one; encode it so.") from error


def _decode_all(pictures: Sequence[Any], decode: Callable[[bytes], Found]) -> list[Found | UserError]:
    """Each of `_read_pictures` as the model takes it, or why not; within DECODING_TIMEOUT and one picture's time."""
    deadline, found = time.monotonic() + DECODING_TIMEOUT, []
    for picture in pictures:
        try:
            if time.monotonic() > deadline:
                raise BusyError(f"The images before it took {DECODING_TIMEOUT} s; send it in another request.")
            found.append(decode(picture if isinstance(picture, bytes) else _decode_base64(picture)))
        except UserError as error:
            found.append(error)
    return found
