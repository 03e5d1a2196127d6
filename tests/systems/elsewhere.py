"""Takes away from this process what Windows does not have; macOS has more of it, but no DALI, /proc or libc.so.6.

Missing are modules, functions of `os` and `signal`, Linux's files, its C library, processes that start as a fork;
`rename` refuses what exists, and text files must name their encoding. What else differs there (paths, the console,
open files that cannot be replaced) is not simulated.
"""

import ctypes
import multiprocessing
import os
import pathlib
import select
import signal
import sys
import warnings
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

# They have ways of their own on Windows.
LIBRARIES = ("huggingface_hub", "numba", "scipy.ndimage", "timm", "torch", "torchmetrics")
MODULES = ("fcntl", "grp", "nvidia.dali", "pwd", "resource", "termios", "triton")
ATTRIBUTES = {
    os: (
        "O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fork", "geteuid", "getuid", "killpg",
        "mkfifo", "posix_fadvise", "pread", "pwrite", "sched_getaffinity", "setsid", "statvfs", "sysconf",
    ),
    signal: ("SIGALRM", "SIGBUS", "SIGHUP", "SIGKILL", "SIGUSR1", "alarm", "setitimer"),
    select: ("epoll", "poll"),
}  # fmt: skip


class _Missing(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class _Msvcrt:
    """`msvcrt.locking` that locks nothing."""

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor: int, mode: int, size: int) -> None:
        pass


def move_to_windows() -> None:
    """To be called before emnist_dali is imported."""
    for library in LIBRARIES:
        import_module(library)
    for name in list(sys.modules):
        if any(f"{name}.".startswith(f"{missing}.") for missing in MODULES):
            del sys.modules[name]
    sys.meta_path.insert(0, _Missing())
    sys.modules["msvcrt"] = _Msvcrt()
    for module, names in ATTRIBUTES.items():
        for name in names:
            delattr(module, name)
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    _hide_files()
    _hide_libraries()
    _refuse_to_rename_onto_what_exists()
    warnings.filterwarnings("error", category=EncodingWarning, module="emnist_dali")


def _hide_files() -> None:
    """Linux's; the project reads them by `Path` only."""
    read_text, exists = pathlib.Path.read_text, pathlib.Path.exists

    def is_linux_file(path: pathlib.Path) -> bool:
        return str(path).startswith(("/proc/", "/sys/"))

    def read(path: pathlib.Path, *arguments: Any, **options: Any) -> str:
        if is_linux_file(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read_text(path, *arguments, **options)

    pathlib.Path.read_text = read
    pathlib.Path.exists = lambda path, **options: not is_linux_file(path) and exists(path, **options)


def _hide_libraries() -> None:
    real = ctypes.CDLL

    def loaded(name: str | None = None, *arguments: Any, **options: Any) -> Any:
        if name is None:
            raise TypeError("a library has a name")
        if name == "libc.so.6":
            raise OSError(f"{name} is not there")
        return real(name, *arguments, **options)

    ctypes.CDLL = loaded


def _refuse_to_rename_onto_what_exists() -> None:
    real = os.rename

    def rename(old: Any, new: Any) -> None:
        if os.path.lexists(new):
            raise FileExistsError(17, "File exists", str(new))
        real(old, new)

    os.rename = rename
