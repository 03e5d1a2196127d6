"""A web page to draw characters on, and its HTTP API, for this machine unless told otherwise."""

import errno
import io
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.progress import say
from ..reports.html import png
from ..runs.classifier import Classifier, load_classifier
from .access import parse_origin, restrict_access
from .answers import to_answer, to_text_answer
from .decoder import BusyError, Decoder
from .emnist_style import Glyph
from .page import render_page
from .posted_pictures import decode_all, read_pictures
from .query import Query, parse_query
from .reading import Form, Writing, read

if TYPE_CHECKING:
    import flask
    from waitress.server import BaseWSGIServer

HOST = "127.0.0.1"
# A phone's photograph has 2 to 6 MiB.
MAX_BODY = 8 * 2**20
# Images in one call of the model, which takes some hundredths of a second.
MAX_BATCH = 512
# Requests that may wait for the decoder and the model, which take them one after the other. A small picture takes
# some hundredths of a second, so the last of them waits for a second or two; whoever comes then does better to try
# again than to keep a body of up to MAX_BODY here. Many more than `decoder.MAX_LARGE_WAITING`, so that waiting large
# pictures leave room for small ones.
MAX_REQUESTS = 64
RETRY_AFTER = 2  # seconds
# The others refuse further requests, and answer those that need neither decoder nor model.
THREADS = MAX_REQUESTS + 8
CONNECTIONS = 512
# Seconds: until more of a request must arrive, and for a whole request to arrive.
IDLE_TIMEOUT, REQUEST_TIMEOUT = 5, 30


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


def serve(model: Path | str, port: int, host: str = HOST, allow_origin: Sequence[str] = ()) -> None:
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
    origins = [parse_origin(text) for text in allow_origin]
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
    from flask import Flask, Response, request
    from werkzeug.exceptions import HTTPException

    app = Flask(__name__, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, MAX_FORM_MEMORY_SIZE=MAX_BODY)
    model = _OneThread(classifier)
    # A page takes up to PAGE_TIMEOUT, so it has a process of its own and keeps no drawing waiting.
    decode, pages = (Decoder(classifier.shape, classifier.converted) for _ in range(2))
    slots = threading.BoundedSemaphore(MAX_REQUESTS)
    restrict_access(app, host, origins)

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
            pictures = read_pictures(request)
            if not isinstance(pictures, list):
                return answer([find(pictures)], asked)[0]
            found = decode_all(pictures, find)
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
