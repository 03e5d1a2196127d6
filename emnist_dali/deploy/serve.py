"""A page to draw characters on, and the same for programs: HTTP on this machine only."""

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
from ..runs.classifier import TrainedClassifier, load_classifier
from .decoder import BusyError, Decoder
from .predict import answer

if TYPE_CHECKING:
    import flask
    from waitress.server import BaseWSGIServer

    from ..runs.onnx_classifier import OnnxClassifier

HOST = "127.0.0.1"
# A photograph of a phone has 2 to 6 MiB.
MAX_BODY = 8 * 2**20
# A body's signs of JSON: what is ours has a handful, and of millions Python would make 100 MB of objects.
MAX_SIGNS = 100
# Far more than `decoder.WAITING`, so that large pictures that wait leave threads for small ones.
THREADS = 24
CONNECTIONS = 512
# Seconds in which something must arrive, and a whole request.
IDLE, ARRIVAL = 5, 30
_FORMS = 'as the body itself, as {"image": base64 or a data: address} in JSON, or as the file «image» of a form'


def serve(model: Path, port: int) -> None:
    """Serves `app` on 127.0.0.1 until Ctrl-C; port 0 takes a free one.

    Raises UserError where the port is taken, the model cannot be loaded, or flask or waitress is missing.
    """
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} could not be imported ({error}); pip install 'emnist-dali[serve]'.") from error
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(
            f"Port {port} of {HOST} cannot be taken ({os.strerror(error.errno)}); "
            f"give another --port, 0 for a free one."
        ) from error
    with listening:
        running = server(app(load_classifier(model)), listening)
        say(f"Draw at http://{HOST}:{running.effective_port} (Ctrl-C ends)")
        running.run()


def server(app: "flask.Flask", listening: socket.socket) -> "BaseWSGIServer":
    """Serves `app` on `listening` once it is `run`, whatever its clients do.

    A body of more than MAX_BODY is refused where it begins, or where it passes that, and a connection ends that is
    IDLE seconds silent or takes ARRIVAL seconds for a request, however steadily it drips.
    """
    import waitress
    from waitress.channel import HTTPChannel

    class Channel(HTTPChannel):
        began = 0.0

        def received(self, data: bytes) -> bool:
            if self.request is None:
                self.began = time.monotonic()
            elif time.monotonic() > self.began + ARRIVAL:
                self.will_close = True
            return super().received(data)

    _allow_files(3 * CONNECTIONS)
    logging.getLogger("waitress").setLevel(logging.ERROR)  # it warns of each request that waits
    made = waitress.create_server(
        app,
        sockets=[listening],
        threads=THREADS,
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE,
        cleanup_interval=1,
        max_request_body_size=MAX_BODY + 1,  # refused from here on
        max_request_header_size=2**14,
        recv_bytes=2**17,  # fewer turns of the loop for a photograph
        asyncore_use_poll=True,  # select() takes no files beyond 1024
        log_socket_errors=False,  # clients that hang up
    )
    made.channel_class = Channel
    return made


def _allow_files(number: int) -> None:
    """Often 1024 may be open, on macOS 256, though the system allows more."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number and (hard == resource.RLIM_INFINITY or hard >= number):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def app(classifier: "TrainedClassifier | OnnxClassifier") -> "flask.Flask":
    """GET / is the page, POST /predict answers for one image with `character`, `probability`, `top` and `seen`.

    An error is {"error": one sentence}: 400 for what is no image, 413 beyond MAX_BODY, 403 for other sites, 503 where
    too many pictures wait.
    """
    from flask import Flask, Response, abort, render_template, request
    from werkzeug.exceptions import HTTPException
    from werkzeug.sansio.utils import host_is_trusted

    app = Flask(__name__, template_folder=".", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, MAX_FORM_MEMORY_SIZE=MAX_BODY)
    # All that the model computes runs in one thread: OpenMP keeps a pool of threads for each that calls it.
    model = ThreadPoolExecutor(1)
    decoded = Decoder(classifier.shape, classifier.converted)

    # Another site's page reaches this server through the reader's browser: by a name of its own that it points here
    # (DNS rebinding; Host tells), or by a plain POST (Origin tells).
    @app.before_request
    def refuse_other_sites() -> None:
        host = request.headers.get("Host", "")
        if not host_is_trusted(host, [HOST, "localhost"]):
            abort(403, f"Only {HOST} and localhost are served.")
        if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
            abort(403, "Pages of other sites are not served.")

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
        top = _top(request.args.get("top", "5"))
        image = decoded(_content(request))
        probabilities = model.submit(classifier.probabilities, image[None]).result()[0]
        return {**answer(probabilities, classifier.classes, top), "seen": png(image)}

    @app.errorhandler(UserError)
    def wrong(error: UserError) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, 503 if isinstance(error, BusyError) else 400

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        said = f"The body has more than {MAX_BODY // 2**20} MiB." if error.code == 413 else error.description
        response = error.get_response()  # with its headers, as Allow of a 405
        response.data = json.dumps({"error": said})
        response.content_type = "application/json"
        return response

    return app


def _top(text: str) -> int:
    try:
        if (top := int(text)) >= 1:
            return top
    except ValueError:
        pass
    raise UserError(f"top is {text[:20]!r}; give a number from 1.")


def _content(request: "flask.Request") -> bytes:
    if request.is_json:
        return _of_json(request.get_data())
    if request.mimetype == "multipart/form-data":
        if "image" not in request.files:
            raise UserError("The form has no file «image»; add it.")
        return request.files["image"].read()
    content = request.get_data()
    if not content:
        raise UserError(f"The body is empty; send an image {_FORMS}.")
    return content


def _of_json(body: bytes) -> bytes:
    try:
        if sum(map(body.count, (b"[", b"{", b",", b":"))) > MAX_SIGNS:
            raise ValueError("it holds much else")
        return base64.b64decode(json.loads(body)["image"].rpartition(",")[2])
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"The JSON holds no image; send one {_FORMS}.") from error
