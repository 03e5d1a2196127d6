"""A web page to draw characters on, and its HTTP API, for this machine only."""

import base64
import json
import logging
import os
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.progress import say
from ..reports.html import png
from ..runs.classifier import Classifier, load_classifier
from .decoder import BusyError, Decoder
from .predict import to_answer

if TYPE_CHECKING:
    import flask
    from waitress.server import BaseWSGIServer

HOST = "127.0.0.1"
# A phone's photograph has 2 to 6 MiB.
MAX_BODY = 8 * 2**20
# Brackets, commas and colons in a JSON body: ours have a handful; millions of them become 100 MB of Python objects.
MAX_JSON_SYMBOLS = 100
# Many more than `decoder.MAX_LARGE_WAITING`, so that waiting large pictures leave threads for small ones.
THREADS = 24
CONNECTIONS = 512
# Seconds: until more of a request must arrive, and for a whole request.
IDLE_TIMEOUT, REQUEST_TIMEOUT = 5, 30
_FORMS = 'as the body, as {"image": base64 or a data: URL} in JSON, or as the file "image" of a form'


def serve(model: Path, port: int) -> None:
    """Serves `create_app` on 127.0.0.1 until Ctrl-C; port 0 takes a free one.

    Raises UserError if the port is in use, the model cannot be loaded, or flask or waitress is missing.
    """
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} could not be imported ({error}); pip install 'emnist-dali[serve]'.") from error
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(
            f"Port {port} of {HOST} cannot be used ({os.strerror(error.errno)}); "
            f"choose another --port, or 0 for a free one."
        ) from error
    with listener:
        server = create_server(create_app(load_classifier(model)), listener)
        say(f"Draw at http://{HOST}:{server.effective_port} (Ctrl-C to stop)")
        server.run()


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


def create_app(classifier: Classifier) -> "flask.Flask":
    """GET / is the page; POST /predict takes a picture and returns the `model`, `to_answer`, and as `seen` the
    model's input.

    Errors are {"error": one sentence}: 400 for invalid images, 413 above MAX_BODY, 403 for other sites, 503 if too
    many pictures are waiting.
    """
    from flask import Flask, Response, abort, render_template, request
    from werkzeug.exceptions import HTTPException
    from werkzeug.sansio.utils import host_is_trusted

    app = Flask(__name__, template_folder=".", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, MAX_FORM_MEMORY_SIZE=MAX_BODY)
    # The model runs in one thread: OpenMP keeps a pool of threads for each thread that calls it.
    model_thread = ThreadPoolExecutor(1)
    decode = Decoder(classifier.shape, classifier.converted)

    # A page of another site can reach this server through the user's browser: under its own host name, resolved to
    # this address (DNS rebinding, shown by Host), or with a cross-origin POST (shown by Origin).
    @app.before_request
    def refuse_other_sites() -> None:
        host = request.headers.get("Host", "")
        if not host_is_trusted(host, [HOST, "localhost"]):
            abort(403, f"Only requests to {HOST} and localhost are answered.")
        if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
            abort(403, "Requests from other sites are not answered.")

    @app.get("/")
    def draw() -> Response:
        nonce = secrets.token_urlsafe()
        response = Response(render_template("draw.html", classifier=classifier, nonce=nonce))
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            f"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        top = _parse_top(request.args.get("top", "5"))
        image = decode(_read_picture(request))
        probabilities = model_thread.submit(classifier.probabilities, image[None]).result()[0]
        answer = to_answer(probabilities, classifier.classes, top)
        return {"model": classifier.name, **answer, "seen": png(image)}

    @app.errorhandler(UserError)
    def handle_user_error(error: UserError) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, 503 if isinstance(error, BusyError) else 400

    @app.errorhandler(HTTPException)
    def handle_http_error(error: HTTPException) -> Response:
        message = f"The body has more than {MAX_BODY // 2**20} MiB." if error.code == 413 else error.description
        response = error.get_response()  # keeps its headers, such as Allow of a 405
        response.data = json.dumps({"error": message})
        response.content_type = "application/json"
        return response

    return app


def _parse_top(text: str) -> int:
    try:
        if (top := int(text)) >= 1:
            return top
    except ValueError:
        pass
    raise UserError(f"top is {text[:20]!r}; set it to an integer of 1 or more.")


def _read_picture(request: "flask.Request") -> bytes:
    """The image file in a request."""
    if request.is_json:
        return _decode_json(request.get_data())
    if request.mimetype == "multipart/form-data":
        if "image" not in request.files:
            raise UserError('The form has no file "image"; add it.')
        return request.files["image"].read()
    content = request.get_data()
    if not content:
        raise UserError(f"The body is empty; send an image {_FORMS}.")
    return content


def _decode_json(body: bytes) -> bytes:
    try:
        if sum(map(body.count, (b"[", b"{", b",", b":"))) > MAX_JSON_SYMBOLS:
            raise ValueError("it is too complex")
        return base64.b64decode(json.loads(body)["image"].rpartition(",")[2])
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"The JSON contains no image; send one {_FORMS}.") from error
