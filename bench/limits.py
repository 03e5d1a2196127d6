"""What the machine itself could do at most: bytes over its copy bandwidth, arithmetic over its matrix rate."""

from dataclasses import dataclass
from math import inf

import torch
from torch.utils.flop_counter import FlopCounterMode

from emnist_dali.training.trainer import Trainer
from timing import rate

_COPIED = 1 << 28  # bytes: far more than any cache
_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured: bytes a second that a copy reads and writes, multiplications and additions a second of a matrix
    product in the type that training computes in."""

    bandwidth: float
    arithmetic: float
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image must cost at least: bytes read and written, floating-point operations of matrix products."""

    bytes: float
    operations: float = 0.0

    def limit(self, machine: Machine) -> tuple[float, str]:
        """Images a second, and which of the two stands in the way."""
        by_bytes = machine.bandwidth / self.bytes
        by_arithmetic = machine.arithmetic / self.operations if self.operations else inf
        return min((by_bytes, "bytes"), (by_arithmetic, "arithmetic"))


def measure(device: torch.device, dtype: torch.dtype, seconds: float) -> Machine:
    source = torch.zeros(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    side = _SIDE[device.type]
    # Random, because products of zeros draw less power and run faster.
    matrix = torch.randn(side, side, device=device, dtype=dtype)

    def copy() -> int:
        target.copy_(source)
        return 2 * _COPIED

    def multiply() -> int:
        matrix @ matrix
        return 2 * side**3

    return Machine(
        bandwidth=rate(copy, seconds, device),
        arithmetic=rate(multiply, seconds, device),
        dtype=str(dtype).removeprefix("torch."),
    )


def training_cost(trainer: Trainer) -> Cost:
    """Of one image in a training step: three times the products of the forward pass, since the backward pass needs
    them for the images and for the weights; parameters, gradients and what the optimizer and the average keep, each
    read and written once a step."""
    config = trainer.config
    size = config.data.image_size
    images = torch.zeros((2, 1, size, size), device=trainer.device)
    # The counter takes the backward pass of a depthwise convolution for a dense one: 15 times too many in B2.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trainer.model(images)
    parameters = sum(parameter.nbytes for parameter in trainer.model.parameters())
    kept = {"lion": 1, "adamw": 2, "adam": 2}.get(config.training.optimizer, 1) + bool(trainer.ema)
    images_a_step = config.data.batch_size * config.training.accumulation
    return Cost(
        bytes=2 * parameters * (2 + kept) / images_a_step + images[0].nbytes,
        operations=3 * counter.get_total_flops() / 2,
    )
