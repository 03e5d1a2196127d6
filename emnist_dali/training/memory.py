"""How much of a GPU's memory a training takes, computed without one."""

from ..config import Config

# Parameters, and bytes per pixel of an input image that a step with AMP holds for its backward. From what PyTorch's
# allocator gave out in `python bench/rehearsal.py`, at 47 classes; tests/rehearsal/ holds them to it.
_MODELS = {
    "efficientnet_b2": (7.8e6, 1346),
    "efficientnet_b3": (10.8e6, 1777),
    "emnist_fast": (1.12e6, 399),
    "emnist_fast_small": (0.28e6, 202),
    "emnist_fast_wide": (0.73e6, 165),
    "emnist_fast_trio": (2.2e6, 150),
    "emnist_fast_large_trio": (3.36e6, 399),
}
# Weights, gradients, averages and two moments in float32, a copy in bf16, and what an update takes in passing.
_BYTES_PER_PARAMETER = 30
# The rest is for what is not counted: CUDA's context, cuDNN's workspaces, DALI's batches, gaps between allocations.
USABLE = 0.8


def peak_bytes(config: Config, world_size: int = 1) -> int | None:
    """The most that the tensors of an uncompiled step take of one GPU; None for a model that was not rehearsed.

    Within 10 % of the rehearsal for images of 56 to 224 pixels; an upper bound with run.compile on.
    """
    if config.model.model not in _MODELS:
        return None
    parameters, per_pixel = _MODELS[config.model.model]
    pixels = config.data.batch_size // world_size * config.data.image_size**2
    # Without AMP activations are float32.
    return round(parameters * _BYTES_PER_PARAMETER + pixels * per_pixel * (2 if config.run.amp == "off" else 1))


def fitting_batch_size(config: Config, memory: int, world_size: int = 1) -> int:
    """The largest of the config's batch, its half, its quarter, … that fits `memory` bytes a GPU; 0 if none does."""
    batch_size = config.data.batch_size
    while batch_size and (peak_bytes(config.override({"batch_size": batch_size}), world_size) or 0) > USABLE * memory:
        batch_size //= 2
    return batch_size


def describe(config: Config, memory: int | None, world_size: int = 1) -> str:
    """A sentence on what `config` takes of a GPU, and on what to do if that has only `memory` bytes."""
    data = config.data
    what = f"{config.model.model} at {data.image_size}×{data.image_size} in batches of {data.batch_size:,}"
    peak = peak_bytes(config, world_size)
    if peak is None:
        return f"What {what} takes of a GPU's memory is not known; it is for {', '.join(_MODELS)}."
    gib = peak / 2**30
    takes = f"{what} takes about {gib:.{1 if gib > 1 else 2}f} GiB of a GPU's memory, computed and not measured"
    if memory is None:
        return f"{takes}."
    fitting = fitting_batch_size(config, memory, world_size)
    takes += f"; this one has {memory / 2**30:.0f}"
    if fitting == data.batch_size:
        return f"{takes}."
    return f"{takes}: set data.batch_size {fitting}." if fitting else f"{takes}: choose another model or image size."
