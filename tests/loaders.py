"""Loaders and trainings of small batches, for tests."""

from typing import Any

import numpy as np

from emnist_dali.config import Config
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader
from emnist_dali.training.build import Training, build_training

STATS = Stats(0.17, 0.33)


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


def whole_training(config: Config, shards: Shards) -> Training:
    """Of all samples: none is held out."""
    return build_training(config, shards, indices=np.arange(len(shards)))
