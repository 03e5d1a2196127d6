"""Decodes pictures to what a model takes, for a server in a separate process, which no file can hang or exhaust.

What comes back from that process is plain numbers: pixels as they are, or arrays in safetensors' format.
"""

import contextlib
import itertools
import multiprocessing
import signal
import struct
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from ..core.errors import UserError
from ..data.image_files import image_errors, open_image, to_grey
from ..data.image_headers import decoding_cost
from .emnist_style import SIZE, Glyph, find_glyph
from .reading import Form, Writing, find

# Bytes for one picture, on top of Python and numpy: the largest needs 0.8 GiB.
MAX_MEMORY = 2**30
# Seconds for one picture, and for one while another that costs less than half as much is waiting.
TIMEOUT, TIMEOUT_IF_CHEAPER_WAITS = 10, 0.5
# The same for a page, of which a full one takes 5 s; and what finding its characters costs, in pixels to decode.
PAGE_TIMEOUT, PAGE_TIMEOUT_IF_CHEAPER_WAITS, PAGE_COST = 30, 5, 30_000_000
MAX_WAIT = 30  # seconds
# At most MAX_LARGE_WAITING pictures of more than SMALL pixels, which take 30 ms or more, may wait.
SMALL, MAX_LARGE_WAITING = 1_000_000, 8
# What is asked of the process: one character, a page, or the boxes of a form, their number.
_KIND = struct.Struct("<i")
_CHARACTER, _PAGE = -1, 0
# Bytes of an answer: the glyphs of the most that a page may have take half of that.
MAX_ANSWER = 2**26
# Type and shape of each array of an answer, without the number of glyphs.
_ARRAYS = {
    "height": (np.float64, None),
    "spans": (np.int32, (4,)),
    "places": (np.int32, (4,)),
    "boxes": (np.int32, (4,)),
    "glyphs": (np.uint8, (SIZE, SIZE)),
}
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
    """`decode` and `find` in another process, one picture at a time, the cheapest waiting picture first.

    All pictures of one character of up to SMALL pixels cost the same; among equals the first come is served first.
    The process may use MAX_MEMORY and takes TIMEOUT at most per picture, PAGE_TIMEOUT for a page; it is replaced if
    it dies, and ends with this object and with this process, however that ends. Thread-safe.
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
        answer = self._wait_and_decode(content, _CHARACTER)
        pixels = self._shape[0] * self._shape[1]
        image = np.frombuffer(answer, np.uint8, pixels).reshape(self._shape)
        return Glyph(image, answer[pixels:].decode() or None)

    def find(self, content: bytes, boxes: int | None) -> Writing | Form:
        """As `reading.find`; raises as `__call__`."""
        arrays = load(self._wait_and_decode(content, _PAGE if boxes is None else boxes))
        found = Writing(**arrays) if boxes is None else Form(**arrays)
        # The process read what a stranger sent.
        for name, array in found._asdict().items():
            dtype, shape = _ARRAYS[name]
            if array.dtype != dtype or array.shape != (() if shape is None else (len(found.glyphs), *shape)):
                raise UserError("The picture could not be decoded: the decoder failed; choose another one.")
        return found

    def _wait_and_decode(self, content: bytes, kind: int) -> bytes:
        with image_errors("The picture"):
            cost = max(decoding_cost(content), SMALL) + (kind != _CHARACTER) * PAGE_COST
        ticket = (cost, next(self._numbers))
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
            return self._decode(content, kind, ticket)
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

    def _decode(self, content: bytes, kind: int, ticket: tuple[int, int]) -> bytes:
        if not self._process.is_alive():  # killed by the system, perhaps
            self._restart()
        page = kind != _CHARACTER
        timeout = PAGE_TIMEOUT if page else TIMEOUT
        if_cheaper_waits = PAGE_TIMEOUT_IF_CHEAPER_WAITS if page else TIMEOUT_IF_CHEAPER_WAITS
        start = time.monotonic()
        try:
            self._connection.send_bytes(_KIND.pack(kind) + content)
            while not self._connection.poll(0.05):
                seconds = time.monotonic() - start
                if seconds > timeout:
                    self._restart()
                    raise UserError(f"The picture takes more than {timeout} s to decode; choose a smaller one.")
                if seconds > if_cheaper_waits and self._lowest_cost() < ticket[0] / 2:
                    self._restart()
                    raise BusyError("The picture takes long to decode and smaller ones are waiting; try again later.")
            answer = self._connection.recv_bytes(MAX_ANSWER)
        except (OSError, EOFError) as error:
            self._restart()
            raise UserError("The picture could not be decoded: the decoder crashed; choose another one.") from error
        if answer[:1] == b"!":
            raise UserError(answer[1:].decode())
        return answer[1:]


def _work(connection: Connection, shape: tuple[int, int], converted: bool) -> None:
    """Answers each picture with = and what `_answer` returns, or with ! and an error message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    _limit_memory()
    with contextlib.suppress(EOFError, OSError):  # the server is gone
        while True:
            request = connection.recv_bytes()
            # If the server was killed, nothing else would end a picture that hangs.
            if hasattr(signal, "alarm"):
                signal.alarm(2 * PAGE_TIMEOUT)
            try:
                answer = b"=" + _answer(request, shape, converted)
            except UserError as error:
                answer = b"!" + str(error).encode()
            connection.send_bytes(answer)
            if hasattr(signal, "alarm"):
                signal.alarm(0)


def _answer(request: bytes, shape: tuple[int, int], converted: bool) -> bytes:
    """A glyph's pixels and its warning, or the arrays of what was found."""
    (kind,), content = _KIND.unpack_from(request), request[_KIND.size :]
    if kind == _CHARACTER:
        glyph = decode(content, shape, converted)
        return glyph.image.tobytes() + (glyph.warning or "").encode()
    found = find(content, None if kind == _PAGE else kind, "The picture")
    return save({name: np.asarray(array) for name, array in found._asdict().items()})


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # macOS does not enforce such limits, Windows has none
        return
    import resource

    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, used + MAX_MEMORY))
