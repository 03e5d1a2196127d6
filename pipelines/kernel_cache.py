"""Where numba keeps its compiled kernels; compiling them takes seconds.

numba itself takes the source's __pycache__ or the user's cache folder, and gives up where neither can be written, as
in a read-only installation of a user without a home.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numba
from numba.core.dispatcher import Dispatcher

_own: list[tempfile.TemporaryDirectory] = []  # removed with this process


def _private_folder() -> str | None:
    """A folder in the system's temporary one that only this user can write; None where there is none."""
    with suppress(OSError, AttributeError):
        folder = Path(tempfile.gettempdir(), f"emnist-dali-kernels-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        stat = folder.lstat()  # another user may have made it, or a link: what lies there is run
        private = stat.st_uid == os.getuid() and not stat.st_mode & 0o077
        if folder.is_dir() and not folder.is_symlink() and private and os.access(folder, os.W_OK):
            return str(folder)
    with suppress(OSError):
        _own.append(tempfile.TemporaryDirectory(prefix="emnist-dali-kernels-"))
        return _own[0].name
    return None


def choose() -> str | None:
    """The folder where it is none of numba's own, "" where there is none; before any kernel is compiled."""
    with suppress(RuntimeError):  # no locator available
        if _numba_has_a_place():
            numba.njit(cache=True)(_private_folder)
            return None
    numba.config.CACHE_DIR = _private_folder() or ""
    if not numba.config.CACHE_DIR:
        # Each process compiles anew. It would refuse to, for `cache=True`.
        Dispatcher.enable_caching = lambda self: None
    return numba.config.CACHE_DIR


def _numba_has_a_place() -> bool:
    """Without a home it may take a folder of the name «~» in the current one, where anybody may have put kernels."""
    home = os.path.isabs(os.path.expanduser("~"))
    return home or bool(numba.config.CACHE_DIR) or os.access(Path(__file__).parent, os.W_OK)


FALLBACK = choose()
