"""Where numba keeps its compiled kernels; compiling them takes seconds.

numba itself takes the source's __pycache__ or the user's cache folder, and gives up where neither can be written, as
in a read-only installation of a user without a home.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numba


def _private_folder() -> str | None:
    """A folder in the system's temporary one that only this user can write; None where there is none."""
    with suppress(OSError, AttributeError):
        folder = Path(tempfile.gettempdir(), f"emnist-dali-kernels-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        stat = folder.lstat()  # another user may have made it, or a link: what lies there is run
        if folder.is_dir() and not folder.is_symlink() and stat.st_uid == os.getuid() and not stat.st_mode & 0o077:
            return str(folder)
    with suppress(OSError):
        return tempfile.mkdtemp(prefix="emnist-dali-kernels-")
    return None


def choose() -> str | None:
    """The folder, where it is neither of numba's own; before any kernel is compiled. Called once, on import."""
    try:
        numba.njit(cache=True)(_private_folder)
    except RuntimeError:  # no locator available
        numba.config.CACHE_DIR = _private_folder() or ""
        return numba.config.CACHE_DIR or None
    return None


FALLBACK = choose()
