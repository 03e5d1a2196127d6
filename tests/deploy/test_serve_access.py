"""Who can use the server: under which hosts, from which sites, and what is said about it at the start."""

import errno
import http.server
import io
import os
import re
import socket
import sys
import threading

import numpy as np
import pytest
import waitress
from click.testing import CliRunner
from PIL import Image, ImageDraw

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.deploy import access, serve

from ..local_server import local_server

SITE = "https://letters.example"


class _Classifier:
    """Answers «a» to everything."""

    name = "stub"
    classes = ("a", "b")
    shape = (28, 28)
    converted = True
    thresholds = typicality = None

    def probabilities(self, images):
        return np.tile(np.array([0.75, 0.25], np.float32), (len(images), 1))


def client_of(*arguments):
    return serve.create_app(_Classifier(), *arguments).test_client()


@pytest.fixture(scope="module")
def default():
    return client_of()


@pytest.fixture(scope="module")
def public():
    """For all machines of the network; this one is called Laptop in the domain example.org."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "Laptop.example.org")
        return client_of("0.0.0.0")


@pytest.fixture(scope="module")
def shared():
    """For the pages of SITE, too."""
    return client_of(serve.HOST, [SITE])


@pytest.fixture(scope="module")
def stroke():
    image = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(image).line((10, 10, 50, 50), 0, 8)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


OWN = [
    "192.168.1.5", "192.168.1.5:8000", "127.0.0.1:8000", "172.17.0.2:49152", "[::1]:8000", "[fe80::1]",
    "[FD00::2]:80", "localhost:8000", "laptop", "LAPTOP:8000", "laptop.example.org", "laptop.local:8000",
]  # fmt: skip


@pytest.mark.parametrize("host", OWN)
def test_other_machines_may_use_any_address_and_this_machines_names(public, stroke, host):
    assert public.get("/", headers={"Host": host}).status_code == 200
    origin = {"Host": host, "Origin": f"http://{host}"}
    assert public.post("/predict", data=stroke, headers=origin).json["character"] == "a"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "192.168.1.5.evil.example", "192.168.1.5.", "laptop.evil.example",
        "evil-laptop", "example.org", "other.example.org", "laptop.localdomain", "local", "", "0", "127.1",
        "2130706433", "0x7f.0.0.1", "::1", "[::1", "[laptop]", "[evil.example]:80", "1.2.3.4@evil.example",
        "evil.example/1.2.3.4", "1.2.3.4:80:80", "1.2.3.4, evil.example", "١.2.3.4", "999.1.1.1",
    ],
)  # fmt: skip
def test_names_that_another_site_can_have_are_refused(public, stroke, host):
    headers = {"Host": host.encode().decode("latin-1")}
    for answer in (public.get("/", headers=headers), public.post("/predict", data=stroke, headers=headers)):
        assert answer.status_code == 403
        assert list(answer.json) == ["error"]
        assert "laptop" not in answer.text.lower()  # the other site reads it


@pytest.mark.parametrize("host", ["192.168.1.5", "[::1]:8000", socket.gethostname(), f"{socket.gethostname()}.local"])
def test_by_default_only_this_machine_is_answered(default, host):
    assert default.get("/", headers={"Host": host}).status_code == 403


def test_ipv6_of_this_machine():
    client = client_of("0:0:0:0:0:0:0:1")
    assert client.get("/", headers={"Host": "[::1]:8000"}).status_code == 200
    assert client.get("/", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.get("/", headers={"Host": "[::2]:8000"}).status_code == 403


def test_a_machine_without_a_name_has_no_empty_one(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "")
    client = client_of("0.0.0.0")
    assert client.get("/", headers={"Host": ""}).status_code == 403
    assert client.get("/", headers={"Host": "10.0.0.1"}).status_code == 200


def cors(answer):
    return {name: value for name, value in answer.headers.items() if name.startswith("Access-Control-")}


def test_an_allowed_site_may_read_answers_and_errors(shared, stroke, monkeypatch):
    headers = {"Origin": SITE}
    busy = "64 requests are waiting; try again later."
    answers = [
        shared.post("/predict", data=stroke, headers=headers),
        shared.post("/predict", data=b"", headers=headers),
        shared.get("/classes", headers=headers),
        shared.get("/nothing", headers=headers),
    ]
    monkeypatch.setattr(serve, "read_pictures", lambda request: (_ for _ in ()).throw(serve.BusyError(busy)))
    answers.append(shared.post("/predict", data=stroke, headers=headers))
    assert [answer.status_code for answer in answers] == [200, 400, 200, 404, 503]
    for answer in answers:
        assert cors(answer) == {
            "Access-Control-Allow-Origin": SITE,
            "Access-Control-Expose-Headers": "Retry-After",
        }
        assert answer.headers["Vary"] == "Origin"


def preflight(client, origin, path="/predict"):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    return client.options(path, headers={"Origin": origin, **asked})


def test_an_allowed_site_may_ask_before(shared):
    answer = preflight(shared, SITE)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == SITE
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "null", "*", "http://letters.example", f"{SITE}:8443", f"{SITE}.evil.example",
        "https://sub.letters.example", f"{SITE}/", "HTTPS://LETTERS.EXAMPLE", f"{SITE}, https://evil.example",
    ],
)  # fmt: skip
def test_no_other_site_is_answered(shared, stroke, origin):
    for answer in (
        shared.post("/predict", data=stroke, headers={"Origin": origin}),
        shared.get("/classes", headers={"Origin": origin}),
        preflight(shared, origin),
    ):
        assert answer.status_code == 403
        assert cors(answer) == {}


def test_without_allowed_sites_nothing_is_said_about_them(default, stroke):
    assert cors(default.post("/predict", data=stroke, headers={"Origin": "http://localhost"})) == {}
    assert preflight(default, SITE).status_code == 403


def test_an_allowed_site_under_a_foreign_host_name_is_refused(shared, stroke):
    headers = {"Origin": SITE, "Host": "letters.example"}
    assert shared.post("/predict", data=stroke, headers=headers).status_code == 403


@pytest.fixture(scope="module")
def elsewhere():
    """The origin of a site of its own, with an empty page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with local_server(Page) as server:
        yield server.url


@pytest.mark.parametrize("allowed", [False, True])
def test_a_browser_lets_only_the_page_of_an_allowed_site_ask(browser, elsewhere, allowed):
    app = serve.create_app(_Classifier(), serve.HOST, [elsewhere] if allowed else [SITE])
    server = waitress.create_server(app, host="127.0.0.1", port=0)
    threading.Thread(target=server.run, daemon=True).start()
    page = browser.new_page()
    page.goto(elsewhere)
    answer = page.evaluate(
        """async address => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 60 })
            const paper = canvas.getContext("2d")
            paper.fillRect(28, 10, 6, 40)
            const image = canvas.toDataURL(), headers = { "Content-Type": "application/json" }
            const body = JSON.stringify({ images: [image, "nothing"] })
            try {
                return await (await fetch(address, { method: "POST", headers, body })).json()
            } catch (error) {
                return error.name
            }
        }""",
        f"http://127.0.0.1:{server.effective_port}/predict",
    )
    page.close()
    if allowed:
        assert [each.get("character", "error") for each in answer] == ["a", "error"]
    else:
        assert answer == "TypeError"


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        (SITE, SITE), (f"{SITE}/", SITE), ("HTTPS://Letters.Example:443", SITE), (f"{SITE}:80", f"{SITE}:80"),
        ("http://10.0.0.7:3000", "http://10.0.0.7:3000"), ("http://localhost:80", "http://localhost"),
        ("http://[::1]:8080", "http://[::1]:8080"), ("https://[fd00::80]", "https://[fd00::80]"),
    ],
)  # fmt: skip
def test_an_origin_is_taken_as_browsers_write_it(given, origin):
    assert access.parse_origin(given) == origin


def invoke(*arguments):
    return CliRunner().invoke(main, ["serve", *arguments])


@pytest.mark.parametrize(
    "origin",
    [
        "", "*", "null", "letters.example", "ftp://letters.example", "https://", "https://a/page", "https://a?b",
        "https://a b", "https://user@a", "https://ä.example", "https://a:port", "https://*.example", "file://",
        "\x1b[31m",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused_before_the_model_is_loaded(origin, monkeypatch):
    monkeypatch.setattr(serve, "load_classifier", lambda path: pytest.fail("loaded"))
    result = invoke("--port", "0", "--allow-origin", origin)
    assert result.exit_code == 1
    assert result.output.startswith("Error: --allow-origin is ")
    assert result.output.endswith("https://example.org.\n")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "host", ["", "localhost", "0", "here", "300.1.1.1", "127.0.0.1:80", "198.51.100.7", "2001:db8::7", "fe80::7%none"]
)
def test_what_is_no_address_of_this_machine_is_refused(host, monkeypatch):
    monkeypatch.setattr(serve, "load_classifier", lambda path: pytest.fail("loaded"))
    result = invoke("--port", "0", "--host", host)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: --host is {host!r}; give an IP address of this machine, 0.0.0.0 for all of them, or leave it out.\n"
    )


def test_a_port_in_use_on_all_addresses_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = invoke("--port", port, "--host", "0.0.0.0")
    reason = os.strerror(errno.EADDRINUSE)
    assert f"Port {port} of 0.0.0.0 cannot be used ({reason}); choose another --port" in result.output


class _Server:
    effective_port = 8000

    def run(self):
        pass


@pytest.fixture
def said(monkeypatch):
    """What `serve` says with some arguments, one entry at a time; nobody is served."""

    def start(*arguments):
        lines = []
        monkeypatch.setattr(serve, "say", lines.append)
        monkeypatch.setattr(serve, "load_classifier", lambda path: _Classifier())
        monkeypatch.setattr(waitress, "create_server", lambda *_, **__: _Server())
        serve.serve("builtin", 0, *arguments)
        return lines

    return start


def test_the_start_says_who_else_can_use_it(said, monkeypatch):
    monkeypatch.setattr(serve, "_reachable_as", lambda host: "192.168.1.5")
    line = "Draw at http://192.168.1.5:8000 (Ctrl-C to stop)"
    assert said() == [line]
    first, warning = said("0.0.0.0")
    assert first == line
    assert re.match(r"Every device that reaches this machine can use it, without a password or encryption; ", warning)
    first, warning = said("127.0.0.1", [f"{SITE}/", "http://localhost:3000"])
    assert first == line
    assert warning.startswith(f"Pages of {SITE}, http://localhost:3000 can use it, too")
    assert len(said("0.0.0.0", [SITE])) == 3


def test_the_address_for_other_machines_is_this_machines_own():
    for host in ("0.0.0.0", "::"):
        address = serve._reachable_as(host)
        if address != socket.gethostname():  # where there is no network
            assert not address.startswith(("127.", "0."))
            socket.create_server((address, 0)).close()  # only one's own can be bound


def test_a_machine_without_a_network_is_shown_by_its_name(monkeypatch):
    def connect(self, address):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", type("Offline", (socket.socket,), {"connect": connect}))
    assert serve._reachable_as("0.0.0.0") == socket.gethostname()


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("::1", "[::1]")])
def test_one_address_is_shown_as_it_is(host, shown):
    assert serve._reachable_as(host) == shown


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_the_qr_code_on_a_terminal_reads_as_the_address(monkeypatch, said):
    pytest.importorskip("segno")
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    monkeypatch.setattr(serve, "_reachable_as", lambda host: "192.168.178.123")
    _, code, _ = said("0.0.0.0")
    # Two modules a character, light ones in the colour of the text.
    halves = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}
    modules = np.array([[halves[each][half] for each in line] for line in code.split("\n") for half in (0, 1)])
    image = np.pad(np.kron(modules, np.ones((8, 8))) * 255, 40, constant_values=255).astype(np.uint8)
    assert cv2.QRCodeDetector().detectAndDecode(image)[0] == "http://192.168.178.123:8000"
    assert len(code.split("\n")) < 24  # a terminal's lines


def test_there_is_no_qr_code_where_none_can_be_shown(monkeypatch, said):
    assert len(said("0.0.0.0")) == 2  # not a terminal
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert len(said("127.0.0.1")) == 1  # nobody else can use it
    terminal.encoding = "ascii"
    assert len(said("0.0.0.0")) == 2
    terminal.encoding = "utf-8"
    monkeypatch.setitem(sys.modules, "segno", None)
    assert len(said("0.0.0.0")) == 2


def test_an_address_of_this_machine_is_bound():
    with serve._listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    with pytest.raises(UserError, match=r"--host is '127\.0\.0\.1 '"):
        serve._listen("127.0.0.1 ", 0)
