"""This machine: its CPUs, its software versions, and what it can reach on the network."""

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from .files import masked, printable

# The most that Linux reads for one MADV_WILLNEED, on a disk with its default read-ahead.
_PIECE = 128 << 10
PACKAGES = ("emnist-dali", "torch", "timm", "nvidia-dali-cuda120", "lion-pytorch", "torchmetrics", "numba", "numpy")
# What nvidia-smi --query-gpu calls each field of `gpu_state`.
_GPU_FIELDS = {
    "gpu_driver": "driver_version",
    "gpu_power_limit_watts": "power.limit",
    "gpu_sm_mhz": "clocks.sm",
    "gpu_sm_max_mhz": "clocks.max.sm",
    "gpu_memory_mhz": "clocks.mem",
    "gpu_memory_max_mhz": "clocks.max.mem",
}


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_native_bf16() -> bool:
    """Whether this CPU has bf16 instructions (AVX512-BF16)."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


def peak_memory() -> int | None:
    """The most memory, in bytes, that this process has had; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory instead of returning it to the kernel.

    Otherwise the activations of every step are page-faulted in again: 1,250 instead of 2,000 img/s when training
    `test_efficientnet` at 32×32, batch 256, on 2 cores.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 32 << 20)  # the largest value that glibc accepts
    mallopt(m_trim_threshold, 2**31 - 1)


def will_need(mapped: np.ndarray) -> None:
    """Has the system read the memory-mapped file under an array into its cache, and does not wait for it."""
    bytes_ = mapped.view(np.uint8)
    for start in range(0, len(bytes_), _PIECE):
        _advise(bytes_[start : start + _PIECE], "MADV_WILLNEED")


def read_at_random(mapped: np.ndarray) -> None:
    """Has a page of the memory-mapped file under an array read alone, without the disk's read-ahead around it."""
    _advise(mapped, "MADV_RANDOM")


def _advise(mapped: np.ndarray, advice: str) -> None:
    try:
        madvise, value = ctypes.CDLL(None).madvise, getattr(mmap, advice)
    except (OSError, AttributeError, TypeError):
        return  # not POSIX
    start = mapped.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(mapped.ctypes.data + mapped.nbytes - start), value)


def available_memory() -> int | None:
    """Bytes that programs and the system's cache can still take; None where Linux does not tell.

    A control group's limit, as in a container, counts as a whole, whatever of it is taken.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, StopIteration):
        return None
    limits = [left]
    for group in groups:
        _, kind, path = group.split(":", 2)
        root, name = (Path("/sys/fs/cgroup"), "memory.max") if not kind else (
            Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        )  # fmt: skip
        for folder in {root, root / path.lstrip("/")} if kind in ("", "memory") else ():
            with suppress(OSError, ValueError):  # there is none, or it is "max"
                limits.append(int((folder / name).read_text()))
    return min(limits)


def busy_seconds() -> float | None:
    """CPU-seconds that all processes have used of the CPUs that this one may use; None where Linux does not tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        cpus = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return None
    of_cpus = [line.split()[1:] for line in lines if line.split()[0] in cpus]
    # user, nice, system, idle, iowait, irq, softirq, steal, and guests, which are part of user and nice
    ticks = sum(int(field) for fields in of_cpus for k, field in enumerate(fields[:8]) if k not in (3, 4))
    return ticks / os.sysconf("SC_CLK_TCK")


def reachable(url: str) -> bool:
    """Whether a server answers at `url` within 5 seconds."""
    import requests

    try:
        requests.head(url, timeout=5)
    except requests.RequestException:
        return False
    return True


def gpu_memory(device: str | None = None) -> int | None:
    """Bytes of a GPU's memory, by default of the current one; None without a GPU and for `cpu`."""
    import torch

    gpu = device if device and device.startswith("cuda") else None
    if device == "cpu" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(gpu).total_memory


def gpu_state(uuid: str) -> dict[str, str | float | None]:
    """Driver, power limit and this moment's clocks of a GPU, from nvidia-smi; what it does not tell is None."""
    query = [f"--id={uuid}", f"--query-gpu={','.join(_GPU_FIELDS.values())}", "--format=csv,noheader,nounits"]
    unknown = dict.fromkeys(_GPU_FIELDS)
    try:
        answer = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return unknown
    cells = [cell.strip() for cell in answer.stdout.strip().split(",")]
    if len(cells) != len(_GPU_FIELDS):
        return unknown
    driver, *numbers = cells
    return {**dict(zip(_GPU_FIELDS, [None, *map(_number, numbers)], strict=True)), "gpu_driver": printable(driver)}


def _number(text: str) -> float | None:
    """None for what a GPU does not support: `[N/A]`."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def environment(device: str | None = None) -> dict[str, Any]:
    """This process's command, machine and package versions, for `env.json` and result files.

    `device` names the GPU that is described, by default the current one; of `cpu` none is.
    """
    import torch

    gpu = device if device and device.startswith("cuda") else None
    has_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "command": printable(masked(" ".join(sys.argv))),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": available_cpus(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(gpu) if has_gpu else None,
        **(gpu_state(f"GPU-{torch.cuda.get_device_properties(gpu).uuid}") if has_gpu else dict.fromkeys(_GPU_FIELDS)),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
