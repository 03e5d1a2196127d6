"""What is in each batch, before any image is touched."""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from ..config import Affine
from ..core.errors import UserError
from ..data.shards import Shards
from ..pipelines import affine as affine_matrices
from . import sampling

_NO_WARP = np.empty((0, 2, 3), np.float32)


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """How samples are put into batches.

    `batch_size` is the global micro-batch size. In training the samples are shuffled anew each epoch by `seed`,
    warped by `affine`, and what does not fill `accumulation` batches is dropped; with `balanced` an epoch has equally
    many of every class. In evaluation they come in order and the last batch is padded. Raises UserError where a batch
    does not divide by the ranks.
    """

    batch_size: int
    train: bool = True
    affine: Affine | None = None
    balanced: bool = False
    accumulation: int = 1  # micro-batches an optimizer step
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise UserError(
                f"A batch of {self.batch_size} images does not divide by {self.world_size} ranks; change "
                "data.batch_size."
            )

    @property
    def local_batch_size(self) -> int:
        """Images of one rank."""
        return self.batch_size // self.world_size


class PlannedBatch(NamedTuple):
    """One rank's part of a batch: sample indices (n,) int64, labels (N,) int64, −1 where padded, and matrices
    (N, 2, 3) float32, or (0, 2, 3) without a warp."""

    indices: np.ndarray
    labels: np.ndarray
    matrices: np.ndarray


class BatchPlan:
    """What is in batch i, counted through all epochs from the first: a pure function of i.

    `indices` (n,) are the samples of `shards` to take, None for all; `size` is the side of the images in pixels.
    """

    def __init__(self, shards: Shards, spec: BatchSpec, size: int, indices: np.ndarray | None = None) -> None:
        self.shards, self.spec, self.size, self.indices = shards, spec, size, indices
        self.samples = len(shards) if indices is None else len(indices)
        self._affine = asdict(spec.affine) if spec.affine else None
        self._classes = sampling.Classes.of(shards.labels(indices)) if spec.train and spec.balanced else None
        if spec.train:
            self.batches = sampling.batches_per_epoch(self.samples, spec.batch_size, spec.accumulation)
        else:
            self.batches = -(-self.samples // spec.batch_size)

    def batch(self, i: int) -> PlannedBatch:
        spec, n = self.spec, self.spec.local_batch_size
        epoch, batch = divmod(i, self.batches)
        positions = sampling.rank_batch(self.samples, batch, spec.batch_size, spec.rank, spec.world_size)
        if self._classes:
            indices = sampling.balanced(self._classes, positions, spec.seed, epoch)
        elif spec.train:
            indices = sampling.shuffled(self.samples, positions, spec.seed, epoch)
        else:
            indices = np.arange(positions.start, positions.stop)
        if self.indices is not None:
            indices = self.indices[indices]
        labels = np.full(n, -1, np.int64)
        labels[: len(indices)] = self.shards.labels(indices)
        matrices = _NO_WARP
        if self._affine:
            # Drawn for all ranks, so that an image's warp does not depend on their number.
            generator = sampling.generator(spec.seed, sampling.Stream.AFFINE, epoch, batch)
            of_all_ranks = affine_matrices.matrices(
                generator, spec.batch_size, self.shards.shape, self.size, **self._affine
            )
            matrices = of_all_ranks[spec.rank * n : (spec.rank + 1) * n]
        return PlannedBatch(indices, labels, matrices)
