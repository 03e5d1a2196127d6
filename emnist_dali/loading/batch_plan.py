"""What is in each batch, before any image is touched."""

from dataclasses import asdict, dataclass
from threading import Lock, Thread
from typing import NamedTuple

import numpy as np

from ..config import Affine
from ..core.errors import UserError
from ..core.machine import available_memory
from ..data.shards import Shards
from ..pipelines import affine as affine_matrices
from . import sampling
from .windows import WINDOW, Windows

_NO_WARP = np.empty((0, 2, 3), np.float32)


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """How samples are put into batches.

    `batch_size` is the global micro-batch size. In training the samples are shuffled anew each epoch by `seed`,
    warped by `affine`, and what does not fill `accumulation` batches is dropped; with `balanced` an epoch has equally
    many of every class, and with `window` only so many samples are shuffled together, and read ahead of their turn.
    In evaluation they come in order and the last batch is padded. Raises UserError where a batch does not divide by
    the ranks, and for `balanced` with a `window`.
    """

    batch_size: int
    train: bool = True
    affine: Affine | None = None
    balanced: bool = False
    window: int | None = None  # samples; None is all
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
        if self.balanced and self.window:
            raise UserError(
                "training.balanced_sampling takes images from anywhere, and data.shuffle_window from one place at a "
                "time; drop one of the two."
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
        # What does not stay in the system's cache is read ahead where its order allows it: not in a shuffle of all.
        memory = available_memory()
        large = bool(spec.window) or (memory is not None and shards.bytes > memory / 2)
        if large:
            shards.read_singly()
        if spec.window and spec.train:
            _check_mixed(shards)
        in_windows = large and (spec.window or not spec.train)
        self._windows = Windows.of(self.samples, spec.window or WINDOW) if in_windows else None
        self._read = 0  # windows that have been read ahead, counted through all epochs
        self._lock = Lock()
        if spec.train:
            self.batches = sampling.batches_per_epoch(self.samples, spec.batch_size, spec.accumulation)
        else:
            self.batches = -(-self.samples // spec.batch_size)

    def batch(self, i: int) -> PlannedBatch:
        spec, n = self.spec, self.spec.local_batch_size
        epoch, batch = divmod(i, self.batches)
        positions = sampling.rank_batch(self.samples, batch, spec.batch_size, spec.rank, spec.world_size)
        if self._windows:
            self._read_ahead(self._windows, positions, epoch)
        if not spec.train:
            indices = np.arange(positions.start, positions.stop)
        elif self._windows:
            indices = self._windows.shuffled(positions, spec.seed, epoch)
        elif self._classes:
            indices = sampling.balanced(self._classes, positions, spec.seed, epoch)
        else:
            indices = sampling.shuffled(self.samples, positions, spec.seed, epoch)
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

    def _read_ahead(self, windows: Windows, positions: range, epoch: int) -> None:
        """Begins to read the windows of a batch and the next one, the first time that they are needed."""
        first = epoch * len(windows) + windows.at(positions.start)
        last = epoch * len(windows) + windows.at(max(positions.start, positions.stop - 1))
        with self._lock:
            if self._read > last + 3:  # further back than threads that work on several batches at once
                self._read = first
            wanted = range(max(first, self._read), last + 2)
            self._read = max(self._read, wanted.stop)
        for each in wanted:
            of_epoch, of_window = divmod(each, len(windows))
            parts = [windows.places(of_window)]
            if self.spec.train:
                parts = windows.read(of_window, self.spec.seed, of_epoch)
            if self.indices is not None:
                parts = [range(self.indices[part.start], self.indices[part.stop - 1] + 1) for part in parts]
            Thread(target=self.shards.read_ahead, args=(parts,), daemon=True).start()


def _check_mixed(shards: Shards) -> None:
    """Raises UserError if images of a class lie side by side, so that a window would hold few classes."""
    labels = shards.labels(np.arange(min(len(shards), 2**20)))
    shares = np.bincount(labels) / len(labels)
    by_chance = (shares**2).sum()
    if (labels[1:] == labels[:-1]).mean() > (1 + by_chance) / 2:
        raise UserError(
            f"Images of a class lie side by side in {shards.folder}, and data.shuffle_window would shuffle those of "
            "few classes together; train without it."
        )
