"""An HTTP server on this machine, for the stand-ins of those that the project asks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def local_server(
    handler: Callable[..., BaseHTTPRequestHandler],
) -> Iterator[ThreadingHTTPServer]:
    """A server at `url`, whose attributes its handler can read; the first request comes after the `with` line."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
