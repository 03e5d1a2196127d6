"""Decodes pictures to what a model takes, for a server in a separate process, which no file can hang or exhaust."""

import contextlib
import itertools
import multiprocessing
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..data.image_files import image_errors, open_image, to_grey
from ..data.image_headers import decoding_cost
from .emnist_style import SIZE, Glyph, find_glyph

# Bytes for one picture, on top of Python and numpy: the largest needs 0.8 GiB.
MAX_MEMORY = 2**30
# Seconds for one picture, and for one while another that costs less than half as much is waiting.
TIMEOUT, TIMEOUT_IF_CHEAPER_WAITS = 10, 0.5
MAX_WAIT = 30  # seconds
# At most MAX_LARGE_WAITING pictures of more than SMALL pixels, which take 30 ms or more, may wait.
SMALL, MAX_LARGE_WAITING = 1_000_000, 8
_PRELOADED = ["__main__", __name__, *(f"PIL.{kind}ImagePlugin" for kind in ("Png", "Jpeg", "Tiff", "WebP"))]


class BusyError(UserError):
    """Too many pictures are waiting."""


def decode(content: bytes, shape: tuple[int, int], converted: bool, name: Path | str = "The picture") -> Glyph:
    """The bytes of an image file → (H, W) uint8 of `shape`, as a classifier takes it, and perhaps a warning.

    In EMNIST's style if `converted`, otherwise resized. Raises UserError, which begins with `name`, for a file that
    is not an image, is too large, or shows no character.
    """
    with image_errors(name):
        image = open_image(content)
        if not converted or shape != (SIZE, SIZE):
            return Glyph(to_grey(image, shape), None)
        glyph = find_glyph(image)
    if glyph is None:
        raise UserError(f"{name} shows no character; choose a picture of one, dark on light or light on dark.")
    return glyph


class Decoder:
    """`decode` in another process, one picture at a time, the cheapest waiting picture first.

    All pictures of up to SMALL pixels cost the same; among equals the first come is served first. The process may use
    MAX_MEMORY and takes TIMEOUT at most per picture; it is replaced if it dies, and ends with this object and with
    this process, however that ends. Thread-safe.
    """

    def __init__(self, shape: tuple[int, int], converted: bool) -> None:
        self._shape, self._converted = shape, converted
        self._condition = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: set[tuple[int, int]] = set()  # cost, and number in order of arrival
        self._running = False
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload(_PRELOADED)
        self._start()

    def __call__(self, content: bytes) -> Glyph:
        """As `decode`; raises UserError if the picture cannot be decoded, BusyError if not at the moment."""
        with image_errors("The picture"):
            ticket = (max(decoding_cost(content), SMALL), next(self._numbers))
        with self._condition:
            self._waiting.add(ticket)
            large = sorted(other for other in self._waiting if other[0] > SMALL)
            self._waiting.difference_update(large[MAX_LARGE_WAITING:])
            self._condition.notify_all()
            ready = self._condition.wait_for(
                lambda: ticket not in self._waiting or (not self._running and ticket == min(self._waiting)), MAX_WAIT
            )
            if not ready or ticket not in self._waiting:
                self._waiting.discard(ticket)
                raise BusyError("Too many smaller pictures are waiting; try again later.")
            self._waiting.remove(ticket)
            self._running = True
        try:
            return self._decode(content, ticket)
        finally:
            with self._condition:
                self._running = False
                self._condition.notify_all()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs, self._shape, self._converted), daemon=True)
        self._process.start()
        theirs.close()  # the process has a copy; if it dies, reading from ours ends

    def _restart(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._start()

    def _lowest_cost(self) -> float:
        with self._condition:
            return min(self._waiting, default=(float("inf"), 0))[0]

    def _decode(self, content: bytes, ticket: tuple[int, int]) -> Glyph:
        if not self._process.is_alive():  # killed by the system, perhaps
            self._restart()
        start = time.monotonic()
        try:
            self._connection.send_bytes(content)
            while not self._connection.poll(0.05):
                seconds = time.monotonic() - start
                if seconds > TIMEOUT:
                    self._restart()
                    raise UserError(f"The picture takes more than {TIMEOUT} s to decode; choose a smaller one.")
                if seconds > TIMEOUT_IF_CHEAPER_WAITS and self._lowest_cost() < ticket[0] / 2:
                    self._restart()
                    raise BusyError("The picture takes long to decode and smaller ones are waiting; try again later.")
            answer = self._connection.recv_bytes()
        except (OSError, EOFError) as error:
            self._restart()
            raise UserError("The picture could not be decoded: the decoder crashed; choose another one.") from error
        if answer[:1] == b"!":
            raise UserError(answer[1:].decode())
        pixels = self._shape[0] * self._shape[1]
        image = np.frombuffer(answer, np.uint8, pixels, offset=1).reshape(self._shape)
        return Glyph(image, answer[1 + pixels :].decode() or None)


def _work(connection: Connection, shape: tuple[int, int], converted: bool) -> None:
    """Answers each picture with =, its pixels and its warning, or with ! and an error message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    _limit_memory()
    with contextlib.suppress(EOFError, OSError):  # the server is gone
        while True:
            content = connection.recv_bytes()
            # If the server was killed, nothing else would end a picture that hangs.
            if hasattr(signal, "alarm"):
                signal.alarm(2 * TIMEOUT)
            try:
                glyph = decode(content, shape, converted)
                answer = b"=" + glyph.image.tobytes() + (glyph.warning or "").encode()
            except UserError as error:
                answer = b"!" + str(error).encode()
            connection.send_bytes(answer)
            if hasattr(signal, "alarm"):
                signal.alarm(0)


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # macOS does not enforce such limits, Windows has none
        return
    import resource

    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, used + MAX_MEMORY))
