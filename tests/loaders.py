"""Loaders and trainings of small batches, for tests."""

from typing import Any

import numpy as np
import torch

from emnist_dali.config import Config
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader
from emnist_dali.training.build import Training, build_training

STATS = Stats(0.17, 0.33)
# With this std a grey level is 1 in the batch.
LEVELS = Stats(0.0, 1 / 255)


def make_loader(
    shards: Shards,
    backend: str = "cpu",
    *,
    size: int = 32,
    stats: Stats = STATS,
    half: bool = False,
    indices: np.ndarray | None = None,
    device: str = "cpu",
    threads: int | None = 2,
    batch_size: int = 64,
    **batches: Any,
) -> Loader:
    """`batches` are other fields of a BatchSpec."""
    return Loader(
        shards,
        BatchSpec(batch_size=batch_size, **batches),
        stats.pixel_spec(shards.shape, size, half=half),
        indices=indices,
        backend=backend,
        device=device,
        threads=threads,
    )


def kept(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 and labels of an epoch, on the CPU: copies, because the loader fills its batches anew."""
    images, labels = zip(
        *((images.float().cpu().clone(), labels.cpu().clone()) for images, labels in loader), strict=True
    )
    return torch.cat(images), torch.cat(labels)


def batches_of_both(shards: Shards, size: int, device: str, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An epoch's images of DALI on `device`, and of the CPU kernel; their labels are equal."""
    found = []
    for backend, where in (("dali", device), ("cpu", "cpu")):
        with make_loader(shards, backend, batch_size=128, size=size, stats=LEVELS, device=where, **changes) as loader:
            found.append(kept(loader))
    (images, labels), (cpu_images, cpu_labels) = found
    assert torch.equal(labels, cpu_labels)
    return images, cpu_images


def assert_within_a_level(images: torch.Tensor, others: torch.Tensor) -> None:
    """In units of a grey level, as with Stats(0, 1 / 255).

    A GPU's equalize may round a pixel to the next level (tests/dali_equalize.py): 1 in 1,500 of random images, and
    the resize takes it to its neighbours. All others differ by interpolation and float16, 1/16 at most.
    """
    apart = (images - others).abs()
    assert apart.max() <= 1.1
    assert (apart > 0.1).float().mean() <= 0.01


def whole_training(config: Config, shards: Shards) -> Training:
    """Of all samples: none is held out."""
    return build_training(config, shards, indices=np.arange(len(shards)))
