"""What `auto` means on this machine."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from .config import Config
from .core import distributed
from .core.errors import UserError
from .core.machine import has_native_bf16

# EfficientNet-B2 at 112×112 takes 17 GB for a batch of 512 on a CPU, and is no faster than with 64.
CPU_PIXELS = 64 * 112 * 112
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(config: Config) -> Config:
    """`config` with every `auto` decided, and on a CPU with its batches cut into micro-batches that fit.

    Raises UserError for a device that is not there.
    """
    gpu = torch.cuda.is_available()
    device = ("cuda" if gpu else "cpu") if config.run.device == "auto" else config.run.device
    config = own_device(replace(config, run=replace(config.run, device=device)))
    device = config.run.device
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"There is no device {device!r}; take --device cuda, cuda:1 or cpu.") from error
    kind = parsed.type
    if kind != "cpu" and (kind != "cuda" or (parsed.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"Device {device} cannot be used here, which has {torch.cuda.device_count()} GPUs; take --device cpu"
            f"{' or start fewer ranks' if distributed.world_size() > 1 else ''}."
        )
    if kind == "cpu":
        config = replace(config, run=replace(config.run, device="cpu"))  # of any number
    if config.training.sync_bn and kind == "cpu":
        raise UserError("--sync-bn needs GPUs: torch has no SyncBatchNorm on CPUs; train without it.")
    device, amp, data, training = config.run.device, config.run.amp, config.data, config.training
    if amp == "auto":
        # GPUs before Ampere only emulate bf16.
        emulated = kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        amp = "off" if kind == "cpu" else "fp16" if emulated else "bf16"
    elif amp == "native":
        amp = "bf16" if kind == "cuda" or has_native_bf16() else "off"
    # On a CPU it takes a minute and gains a tenth.
    compile = ("on" if kind == "cuda" else "off") if config.run.compile == "auto" else config.run.compile
    if data.backend == "auto":
        data = replace(data, backend="dali" if kind == "cuda" else "cpu")
    if kind == "cpu":
        pieces = _pieces(data.batch_size, CPU_PIXELS // data.image_size**2)
        data = replace(data, batch_size=data.batch_size // pieces)
        training = replace(training, accumulation=training.accumulation * pieces)
    return replace(
        config, data=data, training=training, run=replace(config.run, device=device, amp=amp, compile=compile)
    )


def own_device(config: Config) -> Config:
    """Under torchrun each rank has the GPU of its own number."""
    if distributed.world_size() == 1 or not config.run.device.startswith("cuda"):
        return config
    return replace(config, run=replace(config.run, device=f"cuda:{distributed.local_rank()}"))


def _pieces(batch_size: int, most: int) -> int:
    """The fewest equal micro-batches with at most `most` images each (one, where `most` is less)."""
    return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= max(most, 1))


def autocast(config: Config) -> Callable[[], AbstractContextManager]:
    """Makes the autocast context of a resolved config."""
    dtype = AMP_DTYPES.get(config.run.amp)
    return lambda: torch.autocast(torch.device(config.run.device).type, dtype, enabled=dtype is not None)


def compiled(function: Callable, config: Config) -> Callable:
    """`function` through torch.compile where a resolved config says so; every batch has the same shape."""
    return torch.compile(function, dynamic=False) if config.run.compile == "on" else function


def half_images(config: Config) -> bool:
    """Whether batches come as float16: on a GPU under AMP."""
    return config.run.amp != "off" and config.run.device.startswith("cuda")
