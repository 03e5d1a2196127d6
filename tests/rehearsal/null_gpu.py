"""An H100 that computes nothing, for a process of its own: what a program asks of it is noted. Values mean nothing.

cudart.c and cuda.c stand in for CUDA's runtime and driver, libraries.py for cuDNN and cuBLAS. PyTorch, Inductor and
Triton are the real ones: its allocator, its kernels by their names, code for sm_90. NCCL and DALI do not start on it.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
_RUNTIME = "libnullcudart.so"


class Kind(IntEnum):
    """Of a call that is noted; the order is that of null_gpu.h."""

    KERNEL = 0
    TO_DEVICE = 1
    TO_HOST = 2
    ON_DEVICE = 3  # a copy there
    SET = 4  # of memory to a value
    WAIT = 5  # of the host for the device
    ALLOCATE = 6  # from the device, by the caching allocator
    REPLAY = 7  # of a CUDA graph


class Call(NamedTuple):
    """`captured`: into a CUDA graph, instead of being done."""

    name: str
    bytes: int
    kind: Kind
    captured: bool


class _Entry(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("bytes", ctypes.c_long),
        ("kind", ctypes.c_int),
        ("captured", ctypes.c_int),
    )


_ROOM = 1_000_000  # as in cudart.c


def missing() -> str | None:
    """What this machine lacks to build the stand-in."""
    from shutil import which

    if not which("gcc"):
        return "gcc is missing"
    if not find_spec("triton"):
        return "triton is missing, whose CUDA headers it is built with"
    import torch

    return None if (torch.version.cuda or "").startswith("13.") else "torch is not built for CUDA 13"


def environment(folder: Path) -> dict[str, str]:
    """Builds the stand-in in `folder`, where compiled kernels are kept too; returns a process's variables for it."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = Path(find_spec("triton").origin).parent / "backends" / "nvidia" / "include"
    for source, library in (("cudart.c", _RUNTIME), ("cuda.c", "libcuda.so.1")):
        # -w: a stand-in leaves most of its parameters unused.
        command = ["gcc", "-O1", "-shared", "-fPIC", "-w", f"-I{headers}", HERE / source, "-o", folder / library]
        subprocess.run(command, check=True)
    (folder / "libcuda.so").unlink(missing_ok=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    return {
        **os.environ,
        "LD_PRELOAD": str(folder / _RUNTIME),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCH_LOGS": "inductor_metrics",  # without which Inductor does not count the bytes that it moves
        "OMP_NUM_THREADS": "1",
    }


def for_programs(folder: Path) -> dict[str, str]:
    """The variables for a program that knows nothing of this: Python replaces cuDNN and cuBLAS as it starts."""
    return environment(folder) | {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE / "site")))}


def run(
    module: str, *arguments: str, folder: Path, variables: Callable[[Path], dict[str, str]] = environment
) -> None:
    """`python -m module arguments` in a process that sees the stand-in; raises AssertionError with its last words."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=HERE.parents[1], env=variables(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


class Log:
    """The calls since the last `clear`."""

    def __init__(self) -> None:
        process = ctypes.CDLL(None)
        self._length = ctypes.c_long.in_dll(process, "null_gpu_length")
        self._entries = (_Entry * _ROOM).in_dll(process, "null_gpu_log")
        self._note = process.null_gpu_note
        self._names: dict[str, bytes] = {}

    def __len__(self) -> int:
        return self._length.value

    def clear(self) -> None:
        self._length.value = 0

    def note(self, name: str, kind: Kind = Kind.KERNEL) -> None:
        self._note(ctypes.c_int(kind), self._names.setdefault(name, name.encode()), ctypes.c_size_t(0))

    def calls(self) -> list[Call]:
        assert len(self) <= _ROOM, "the log is full"
        return [
            Call(entry.name.decode(), entry.bytes, Kind(entry.kind), bool(entry.captured))
            for entry in self._entries[: len(self)]
        ]
