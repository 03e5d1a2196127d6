"""Pictures as a model takes them, decoded in a process of their own, so that no file can hang or fill the server."""

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
from ..data.image_files import cost, grey, open_image, readable
from .emnist_style import SIZE, convert

# For one picture, beside what Python and numpy take: the largest needs 0.8 GiB.
MEMORY = 2**30
# Seconds for one picture; and while one waits that takes less than half.
LIMIT, PATIENCE = 10, 0.5
LONGEST_WAIT = 30
# Of pictures of more than CHEAP pixels, which take 30 ms and more, so many may wait.
CHEAP, WAITING = 1_000_000, 8
_PRELOADED = ["__main__", __name__, *(f"PIL.{kind}ImagePlugin" for kind in ("Png", "Jpeg", "Tiff", "WebP"))]


class BusyError(UserError):
    """There are too many pictures just now."""


def decode(content: bytes, shape: tuple[int, int], converted: bool, name: Path | str = "The picture") -> np.ndarray:
    """An image file's bytes as a model of images of `shape` takes them, (H, W) uint8: converted to what EMNIST holds
    where it was `converted`, else plainly resized. UserError, which begins with `name`, where that cannot be."""
    with readable(name):
        image = open_image(content)
        if not converted or shape != (SIZE, SIZE):
            return grey(image, shape)
        glyph = convert(image)
    if glyph is None:
        raise UserError(f"{name} shows no character; give a picture of one, dark on light or light on dark.")
    return glyph


class Decoder:
    """`decode` in another process, one picture at a time, the cheapest of those that wait first; of CHEAP ones and of
    equals the one that came first.

    The process is held to MEMORY and to LIMIT seconds a picture, is replaced where it dies, and ends with this object
    and with this process, however that ends. To be called by any number of threads.
    """

    def __init__(self, shape: tuple[int, int], converted: bool) -> None:
        self._shape, self._converted = shape, converted
        self._turn = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: set[tuple[int, int]] = set()  # cost, and number in the order of their coming
        self._running = False
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload(_PRELOADED)
        self._start()

    def __call__(self, content: bytes) -> np.ndarray:
        """(H, W) uint8; raises UserError where the picture cannot be decoded, BusyError where it cannot be now."""
        with readable("The picture"):
            ours = (max(cost(content), CHEAP), next(self._numbers))
        with self._turn:
            self._waiting.add(ours)
            large = sorted(each for each in self._waiting if each[0] > CHEAP)
            self._waiting.difference_update(large[WAITING:])
            self._turn.notify_all()
            ready = self._turn.wait_for(
                lambda: ours not in self._waiting or (not self._running and ours == min(self._waiting)), LONGEST_WAIT
            )
            if not ready or ours not in self._waiting:
                self._waiting.discard(ours)
                raise BusyError("Too many pictures wait that are smaller; send it later.")
            self._waiting.remove(ours)
            self._running = True
        try:
            return self._decoded(content, ours)
        finally:
            with self._turn:
                self._running = False
                self._turn.notify_all()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs, self._shape, self._converted), daemon=True)
        self._process.start()
        theirs.close()  # the process has its own: where it dies, reading here ends

    def _cheapest(self) -> float:
        with self._turn:
            return min(self._waiting, default=(float("inf"), 0))[0]

    def _replace(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._start()

    def _decoded(self, content: bytes, ours: tuple[int, int]) -> np.ndarray:
        if not self._process.is_alive():  # the system may have killed it
            self._replace()
        start = time.monotonic()
        try:
            self._connection.send_bytes(content)
            while not self._connection.poll(0.05):
                seconds = time.monotonic() - start
                if seconds > LIMIT:
                    self._replace()
                    raise UserError(f"The picture takes more than {LIMIT} s to decode; give a smaller one.")
                if seconds > PATIENCE and self._cheapest() < ours[0] / 2:
                    self._replace()
                    raise BusyError("The picture takes long to decode, and smaller ones wait; send it later.")
            answer = self._connection.recv_bytes()
        except (OSError, EOFError) as error:
            self._replace()
            raise UserError("The picture cannot be decoded: what decodes it died; give another one.") from error
        if answer[:1] == b"!":
            raise UserError(answer[1:].decode())
        return np.frombuffer(answer, np.uint8, offset=1).reshape(self._shape)


def _work(connection: Connection, shape: tuple[int, int], converted: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    _limit_memory()
    with contextlib.suppress(EOFError, OSError):  # the server is gone
        while True:
            content = connection.recv_bytes()
            # Where the server was killed nobody else ends a picture that hangs.
            if hasattr(signal, "alarm"):
                signal.alarm(2 * LIMIT)
            try:
                answer = b"=" + decode(content, shape, converted).tobytes()
            except UserError as error:
                answer = b"!" + str(error).encode()
            connection.send_bytes(answer)
            if hasattr(signal, "alarm"):
                signal.alarm(0)


def _limit_memory() -> None:
    size = Path("/proc/self/statm")
    if not size.exists():  # macOS does not hold to such limits, Windows has none
        return
    import resource

    used = int(size.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
