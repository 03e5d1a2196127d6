"""What `auto` means on this machine."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from .config import Config
from .core import distributed
from .core.errors import UserError
from .core.machine import has_native_bf16
from .core.progress import say

# EfficientNet-B2 at 112×112 needs 17 GB for a batch of 512 on a CPU, and is no faster than with a batch of 64.
CPU_PIXELS = 64 * 112 * 112
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(config: Config) -> Config:
    """`config` with every `auto` decided; on a CPU, large batches are split into micro-batches that fit.

    Only data.backend may stay `auto`, on a GPU: `loading.loader.with_backend` decides it by the size of the data.

    Raises UserError for a device that is not available.
    """
    device = config.run.device
    if device == "auto":
        device = "cuda" if has_gpu() else "cpu"
        if device == "cpu" and torch.cuda.is_available():
            say(f"The CPU trains: this torch has no kernels for {_gpu_name(torch.device('cuda', 0))}.")
    config = with_local_device(replace(config, run=replace(config.run, device=device)))
    device = config.run.device
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"run.device is {device!r}; it must be cuda, cuda:1 or cpu.") from error
    kind = parsed.type
    if kind != "cpu" and (kind != "cuda" or (parsed.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"run.device is {device}, but this machine has {torch.cuda.device_count()} GPUs; choose cpu"
            f"{' or start fewer ranks' if distributed.world_size() > 1 else ''}."
        )
    if kind == "cuda" and not _has_kernels(parsed):
        raise UserError(
            f"run.device is {device}, and this torch has no kernels for {_gpu_name(parsed)}; choose cpu, or install "
            "one that has (docs/troubleshooting.md)."
        )
    if kind == "cpu":
        config = replace(config, run=replace(config.run, device="cpu"))  # cpu:0, cpu:1, …
    if config.training.sync_bn and kind == "cpu":
        raise UserError("training.sync_bn needs GPUs: torch has no SyncBatchNorm for CPUs; turn it off.")
    device, amp, data, training = config.run.device, config.run.amp, config.data, config.training
    if amp == "auto":
        amp = "off" if kind == "cpu" else "bf16" if _has_bf16(parsed) else "fp16"
    elif amp == "native":
        amp = "bf16" if kind == "cuda" or has_native_bf16() else "off"
    compile = config.run.compile
    captured = kind == "cuda" and distributed.world_size() == 1 and training.accumulation == 1 and amp != "fp16"
    if compile == "graph" and not captured:
        compile = "off"
    if data.backend == "auto" and kind == "cpu":
        data = replace(data, backend="cpu")
    if kind == "cpu":
        splits = _splits(data.batch_size, CPU_PIXELS // data.image_size**2)
        data = replace(data, batch_size=data.batch_size // splits)
        training = replace(training, accumulation=training.accumulation * splits)
    return replace(
        config, data=data, training=training, run=replace(config.run, device=device, amp=amp, compile=compile)
    )


def has_gpu() -> bool:
    """Whether torch sees a GPU and has kernels for the first one: its builds leave out old ones."""
    return torch.cuda.is_available() and _has_kernels(torch.device("cuda", 0))


def _has_kernels(device: torch.device) -> bool:
    """A kernel runs on GPUs of its major version and of no lower minor one, and its PTX on all later ones."""
    has = torch.cuda.get_device_capability(device)
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list()]
    versions = [(name[1], (int(name[2]), int(name[3]))) for name in built if name]
    fits = (version <= has and (kind == "compute" or version[0] == has[0]) for kind, version in versions)
    return not versions or any(fits)  # ROCm's have other names


def _has_bf16(device: torch.device) -> bool:
    """GPUs before Ampere only emulate it; torch answers for the current one."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _gpu_name(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, of compute capability {major}.{minor}"


def use_device(config: Config) -> None:
    """Makes a resolved config's GPU the current one of this process, and allows TF32 on it.

    TF32 is for what is not autocast; with run.amp off that is everything.
    """
    device = torch.device(config.run.device)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
        torch.set_float32_matmul_precision("high")


def with_local_device(config: Config) -> Config:
    """`config`, with the GPU of this rank under torchrun."""
    if distributed.world_size() == 1 or not config.run.device.startswith("cuda"):
        return config
    return replace(config, run=replace(config.run, device=f"cuda:{distributed.local_rank()}"))


def _splits(batch_size: int, limit: int) -> int:
    """The smallest number of equal micro-batches of at most `limit` images, or of one image if `limit` is 0."""
    return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= max(limit, 1))


def autocast(config: Config) -> Callable[[], AbstractContextManager]:
    """A factory of autocast contexts for a resolved config."""
    dtype = AMP_DTYPES.get(config.run.amp)
    return lambda: torch.autocast(torch.device(config.run.device).type, dtype, enabled=dtype is not None)


def compiled(function: Callable, config: Config) -> Callable:
    """`function`, through torch.compile if the resolved config says so; every batch has the same shape."""
    return torch.compile(function, dynamic=False) if config.run.compile == "on" else function


def half_images(config: Config) -> bool:
    """Whether batches are float16: on a GPU with AMP."""
    return config.run.amp != "off" and config.run.device.startswith("cuda")
