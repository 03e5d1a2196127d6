"""A local stand-in for NIST's server: one file, whole or by range; its attributes make it misbehave."""

import http.server
import re
from collections.abc import Iterator
from contextlib import contextmanager

from .local_server import local_server


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200 if self.server.heads else 405)
        if self.server.sends_length:
            self.send_header("Content-Length", str(len(self.server.data) if self.server.heads else 0))
        self.end_headers()

    def do_GET(self):
        server, data = self.server, self.server.data
        requested = self.headers.get("Range")
        server.ranges_requested.append(requested)
        first, last = 0, len(data) - 1
        if requested and server.ranges:
            start, end = re.fullmatch(r"bytes=(\d*)-(\d+)", requested).groups()
            first, last = (int(start), int(end)) if start else (max(0, len(data) - int(end)), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first + server.shift}-{last}/{len(data)}")
        else:
            self.send_response(200)
        if server.sends_length:
            self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        body = data[first : last + 1]
        if len(body) > 1_000 and server.cuts and not (requested or "").startswith("bytes=-"):
            body = body[: server.cuts.pop(0)]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serving(data: bytes) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves `data` at `url` on this machine."""
    with local_server(Handler) as server:
        server.data = data
        server.url += "/gzip.zip"
        server.heads = True
        server.ranges, server.sends_length, server.shift, server.cuts, server.ranges_requested = True, True, 0, [], []
        yield server
