"""Reading large parts of files into memory."""

import os
from pathlib import Path

import numpy as np

# What a read past the system's cache begins and ends at, in a file and in memory: the block of every disk divides it.
ALIGNED = 4096


def allocate(sizes: list[int]) -> list[np.ndarray]:
    """Memory in which `read` may put as many bytes of a file each, in one piece.

    For one of 4 MB and more numpy asks for large pages: else the CPU has to look up where nearly every record lies.
    """
    rooms = [(size // ALIGNED + 2) * ALIGNED for size in sizes]  # from before the first byte to after the last
    whole = np.empty(sum(rooms) + ALIGNED, np.uint8)
    first = -whole.ctypes.data % ALIGNED
    return np.split(whole[first : first + sum(rooms)], np.cumsum(rooms)[:-1])


def read(path: Path, start: int, stop: int, memory: np.ndarray, *, cached: bool) -> np.ndarray:
    """Bytes start … stop − 1 of a file, in a part of `memory`, which is as `allocate` gives it.

    Not `cached` they go past the system's cache, where that can be: 0.05 instead of 0.3 CPU-seconds a GB, for what
    would be dropped from it before it is read again. Raises OSError, and EOFError where the file is shorter.
    """
    if not cached and hasattr(os, "O_DIRECT"):
        try:
            return _read(path, start, stop, memory, os.O_DIRECT)
        except OSError:  # of a file system that has no such thing, or of the disk, which then comes again
            pass
    return _read(path, start, stop, memory, 0)


def _read(path: Path, start: int, stop: int, memory: np.ndarray, flags: int) -> np.ndarray:
    first = start // ALIGNED * ALIGNED
    room, filled = memory[: -(-(stop - first) // ALIGNED) * ALIGNED], 0
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | flags), "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # the disk's read-ahead would go on into what is not asked for
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(first)
        while filled < stop - first:
            count = file.readinto(room[filled:])
            if not count:
                raise EOFError(f"{path} ends after {first + filled} bytes")
            filled += count
    return room[start - first : stop - first]
