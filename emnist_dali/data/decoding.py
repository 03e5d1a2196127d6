"""Decodes many image files on all cores."""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from ..core.errors import UserError
from ..core.machine import available_cpus
from .image_files import image_errors, open_image, to_grey

# Images from which on processes save more than their start takes.
FEWEST = 4096
# What a process is sent at once: sending images one by one would take longer than decoding them.
PIECE_IMAGES, PIECE_BYTES = 256, 8 * 2**20

Piece = list[tuple[Path, bytes]]


def decode(files: Iterable[tuple[Path, bytes]], images: np.ndarray) -> None:
    """Decodes files, with their contents, into `images` (N, H, W) uint8, in order.

    Files are taken only as fast as they are decoded. Raises UserError for one that is not an image, and where the
    system ends a process.
    """
    shape = images.shape[1:]
    pieces, workers = _pieces(files, images[:1].nbytes), min(available_cpus(), len(images) // PIECE_IMAGES)
    python = bool(sys.executable) and not getattr(sys, "frozen", False)  # a bundled program would start itself again
    if len(images) < FEWEST or workers < 2 or not python:
        decoded = (_decode(piece, shape) for piece in pieces)
    else:
        decoded = _in_processes(pieces, shape, workers)
    filled = 0
    for part in decoded:
        images[filled : filled + len(part)] = part
        filled += len(part)


def _pieces(files: Iterable[tuple[Path, bytes]], decoded_bytes: int) -> Iterator[Piece]:
    """Of at most PIECE_BYTES, or one more image, before decoding and after."""
    piece: Piece = []
    size = 0
    for path, content in files:
        piece.append((path, content))
        size += max(len(content), decoded_bytes)
        if len(piece) == PIECE_IMAGES or size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _decode(piece: Piece, shape: tuple[int, int]) -> np.ndarray:
    images = np.empty((len(piece), *shape), np.uint8)
    for i, (path, content) in enumerate(piece):
        with image_errors(path):
            images[i] = to_grey(open_image(content), shape)
    return images


def _in_processes(pieces: Iterable[Piece], shape: tuple[int, int], workers: int) -> Iterator[np.ndarray]:
    idle: SimpleQueue[_Process] = SimpleQueue()

    def decode_in_process(piece: Piece) -> np.ndarray:
        process = idle.get()
        try:
            return process.decode(piece)
        finally:
            idle.put(process)

    with ThreadPoolExecutor(workers) as threads, ExitStack() as processes:
        for _ in range(workers):
            idle.put(processes.enter_context(_Process(shape)))
        pending = deque()
        for piece in pieces:
            pending.append(threads.submit(decode_in_process, piece))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Process:
    """Another Python that decodes pieces. It ends with its input, and so with this process, however that ends.

    Not one of `multiprocessing`: those run a user's script again if it calls `prepare` without a guard.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        path = [entry for entry in sys.path if isinstance(entry, str)]
        program = f"import sys; sys.path[:] = {path}; from {__name__} import work; work({shape})"
        command, pipe = [sys.executable, "-c", program], subprocess.PIPE
        try:
            # In a session of its own, where Ctrl-C does not reach it.
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        except OSError as error:
            raise UserError(
                f"A process that decodes images could not be started ({error.strerror}); end other programs and try "
                "again."
            ) from error

    def decode(self, piece: Piece) -> np.ndarray:
        try:
            pickle.dump(piece, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                "A process that decodes images ended, perhaps for lack of memory; free some and try again."
            ) from error
        if isinstance(answer, UserError):
            raise answer
        return answer

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with suppress(BrokenPipeError):  # of what it had not read
            self._process.stdin.close()


def work(shape: tuple[int, int]) -> None:
    """Answers each piece on stdin with images (n, H, W) uint8, or a UserError, on stdout, both pickled."""
    with suppress(EOFError, OSError, pickle.UnpicklingError):  # the other process is gone
        while True:
            piece = pickle.load(sys.stdin.buffer)
            try:
                answer = _decode(piece, shape)
            except UserError as error:
                answer = error
            pickle.dump(answer, sys.stdout.buffer)
            sys.stdout.flush()
    os._exit(0)  # Python would write what is left for a closed pipe, and complain
