"""What is in each batch, before any image is touched."""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from ..config import Affine
from ..data.shards import Shards
from ..pipelines import affine as affine_matrices
from . import sampling


class PlannedBatch(NamedTuple):
    """One batch before preprocessing: sample indices (n,), labels (N,), matrices (N, 2, 3) or (0, 2, 3)."""

    indices: np.ndarray
    labels: np.ndarray
    matrices: np.ndarray


class Plan:
    """What is in batch i, counted through all epochs from the first: a pure function of i."""

    def __init__(
        self,
        shards: Shards,
        *,
        members: np.ndarray | None,
        batch_size: int,
        size: int,
        accumulation: int,
        train: bool,
        affine: Affine | None,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.shards, self.members, self.batch_size, self.size = shards, members, batch_size, size
        self.samples = len(shards) if members is None else len(members)
        self.share = batch_size // world  # images of one rank
        self.train, self.affine, self.seed, self.rank, self.world = train, affine, seed, rank, world
        if train:
            self.batches = sampling.batches_per_epoch(self.samples, batch_size, accumulation)
        else:
            self.batches = -(-self.samples // batch_size)

    def batch(self, i: int) -> PlannedBatch:
        epoch, batch = divmod(i, self.batches)
        places = sampling.rank_batch(self.samples, batch, self.batch_size, self.rank, self.world)
        if self.train:
            indices = sampling.shuffled(self.samples, places, self.seed, epoch)
        else:
            indices = np.arange(places.start, places.stop)
        if self.members is not None:
            indices = self.members[indices]
        labels = np.full(self.share, -1, np.int64)
        labels[: len(indices)] = self.shards.labels(indices)
        matrices = np.empty((0, 2, 3), np.float32)
        if self.affine:
            generator = sampling.generator(self.seed, sampling.Stream.AFFINE, epoch, batch)
            everybody = affine_matrices.matrices(
                generator, self.batch_size, self.shards.shape, self.size, **asdict(self.affine)
            )
            matrices = everybody[self.rank * self.share : (self.rank + 1) * self.share]
        return PlannedBatch(indices, labels, matrices)
