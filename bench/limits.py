"""Upper bounds that the machine sets: bytes over its copy bandwidth, operations over its matrix-product rate."""

from dataclasses import dataclass
from math import inf

import torch
from torch.utils.flop_counter import FlopCounterMode

from emnist_dali.training.trainer import Trainer
from timing import rate

_COPY_BYTES = 1 << 28  # far more than any cache
_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured rates of the machine."""

    bandwidth: float  # bytes/s that a copy reads and writes
    arithmetic: float  # FLOP/s of a matrix product of `dtype`
    dtype: str  # that training computes in


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The least that one image costs."""

    bytes: float  # read and written
    operations: float = 0.0  # FLOP of matrix products

    def limit(self, machine: Machine) -> tuple[float, str]:
        """The bound in images/s, and which of the two sets it."""
        by_bytes = machine.bandwidth / self.bytes
        by_arithmetic = machine.arithmetic / self.operations if self.operations else inf
        return min((by_bytes, "bytes"), (by_arithmetic, "arithmetic"))


def measure(device: torch.device, dtype: torch.dtype, seconds: float) -> Machine:
    """Measures for `seconds` each."""
    source = torch.zeros(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    side = _SIDE[device.type]
    # Random, because products of zeros draw less power and run faster.
    matrix = torch.randn(side, side, device=device, dtype=dtype)

    def copy() -> int:
        target.copy_(source)
        return 2 * _COPY_BYTES

    def multiply() -> int:
        matrix @ matrix
        return 2 * side**3

    return Machine(
        bandwidth=rate(copy, seconds, device),
        arithmetic=rate(multiply, seconds, device),
        dtype=str(dtype).removeprefix("torch."),
    )


def training_cost(trainer: Trainer) -> Cost:
    """Cost of an image in a training step.

    Operations are three times those of the forward pass: the backward pass has products for the images and for the
    weights. Bytes are those of the parameters, the gradients, the optimizer's state and the averaged weights, each
    read and written once per step.
    """
    config = trainer.config
    size = config.data.image_size
    images = torch.zeros((2, 1, size, size), device=trainer.device)
    # Forward only: the counter treats the backward pass of a depthwise convolution as dense, 15 times too much in B2.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trainer.model(images)
    parameters = sum(parameter.nbytes for parameter in trainer.model.parameters())
    state = {"lion": 1, "adamw": 2, "adam": 2}.get(config.training.optimizer, 1) + bool(trainer.ema)
    images_per_step = config.data.batch_size * config.training.accumulation
    return Cost(
        bytes=2 * parameters * (2 + state) / images_per_step + images[0].nbytes,
        operations=3 * counter.get_total_flops() / 2,
    )
