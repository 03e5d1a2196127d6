"""What is in each batch, before any image is touched."""

import threading
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from . import order
from .config import Affine
from .pipelines import affine as affine_matrices
from .shards import Shards


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
        members: np.ndarray,
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
        self.train, self.affine, self.seed, self.rank, self.world = train, affine, seed, rank, world
        if train:
            self.batches = order.batches_per_epoch(len(members), batch_size, accumulation)
        else:
            self.batches = -(-len(members) // batch_size)
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def epoch_order(self, epoch: int) -> np.ndarray:
        if not self.train:
            return self.members
        with self._lock:  # prefetching reaches into the next epoch: two orders are alive at its border
            if epoch not in self._orders:
                self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
                self._orders[epoch] = order.permutation(self.members, self.seed, epoch)
            return self._orders[epoch]

    def batch(self, i: int) -> PlannedBatch:
        epoch, batch = divmod(i, self.batches)
        share = self.batch_size // self.world
        indices = order.rank_batch(self.epoch_order(epoch), batch, self.batch_size, self.rank, self.world)
        labels = np.full(share, -1, np.int64)
        labels[: len(indices)] = self.shards.labels(indices)
        matrices = np.empty((0, 2, 3), np.float32)
        if self.affine:
            generator = order.generator(self.seed, order.Stream.AFFINE, epoch, batch)
            everybody = affine_matrices.matrices(
                generator, self.batch_size, self.shards.shape, self.size, **asdict(self.affine)
            )
            matrices = everybody[self.rank * share : (self.rank + 1) * share]
        return PlannedBatch(indices, labels, matrices)
