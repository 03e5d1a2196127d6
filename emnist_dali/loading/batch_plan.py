"""What is in each batch, before any image is touched."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import Lock, Thread
from typing import NamedTuple

import numpy as np

from ..config import Affine
from ..core.distributed import local_world_size
from ..core.errors import UserError
from ..core.machine import available_memory
from ..data.shards import Held, Shards
from ..pipelines import affine as affine_matrices
from . import sampling
from .windows import Windows

_NO_WARP = np.empty((0, 2, 3), np.float32)
# Of an evaluation, which takes samples in their order; the first ones are not read ahead.
BATCHES_AHEAD = 8
# Samples that a disk reads in the time of one that it has to find: 1,300 MB/s and 14,000 reads/s.
SPARSEST = 200
# Of this machine's memory that a window may take, with what lies between its samples, and the most bytes: beside it
# are the next one and, for a while, the one before. How much memory there is only Linux tells.
WINDOW_SHARE, LARGEST_WINDOW, LARGEST_OF_UNKNOWN = 1 / 8, 1 << 30, 1 << 28
# Batches that one thread of a loader may be behind another; their windows are kept.
BEHIND = 64


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
    (N, 2, 3) float32, or (0, 2, 3) without a warp; `shards` gives its records, from memory where they are there."""

    indices: np.ndarray
    labels: np.ndarray
    matrices: np.ndarray
    shards: Shards


class BatchPlan:
    """What is in batch i, counted through all epochs from the first: a pure function of i.

    `indices` (n,) are the samples of `shards` to take, None for all; `size` is the side of the images in pixels.
    """

    def __init__(self, shards: Shards, spec: BatchSpec, size: int, indices: np.ndarray | None = None) -> None:
        self.shards, self.spec, self.size, self.indices = shards, spec, size, indices
        self.samples = len(shards) if indices is None else len(indices)
        self._affine = asdict(spec.affine) if spec.affine else None
        self._classes = sampling.Classes.of(shards.labels(indices)) if spec.train and spec.balanced else None
        self._windows = Windows.of(self.samples, spec.window) if spec.train and spec.window else None
        if self._windows:
            _check_mixed(shards)
        self._reads_ahead, self._cached, self._room = False, True, 0.0
        self._reader: ThreadPoolExecutor | None = None
        self._held: dict[int, Future] = {}  # windows in memory or on the way there, counted through all epochs
        self._front = 0  # the latest batch
        self._lock = Lock()
        if spec.train:
            self.batches = sampling.batches_per_epoch(self.samples, spec.batch_size, spec.accumulation)
        else:
            self.batches = -(-self.samples // spec.batch_size)

    def batch(self, i: int) -> PlannedBatch:
        spec, n = self.spec, self.spec.local_batch_size
        epoch, batch = divmod(i, self.batches)
        positions = sampling.rank_batch(self.samples, batch, spec.batch_size, spec.rank, spec.world_size)
        shards = self.shards
        if self._reads_ahead and self._windows:
            shards = self._holding(self._windows, i)
        elif self._reads_ahead and not spec.train:
            self._read_on(batch + BATCHES_AHEAD)
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
        labels[: len(indices)] = shards.labels(indices)
        matrices = _NO_WARP
        if self._affine:
            # Drawn for all ranks, so that an image's warp does not depend on their number.
            generator = sampling.generator(spec.seed, sampling.Stream.AFFINE, epoch, batch)
            of_all_ranks = affine_matrices.matrices(
                generator, spec.batch_size, self.shards.shape, self.size, **self._affine
            )
            matrices = of_all_ranks[spec.rank * n : (spec.rank + 1) * n]
        return PlannedBatch(indices, labels, matrices, shards)

    def read_ahead(self) -> None:
        """From now on reads what the next batches need: windows into memory; an evaluation's into the system's cache.

        A shuffle of all takes single records from anywhere, and has nothing to read ahead.
        """
        memory = available_memory()
        if not self._windows and (memory is None or self.shards.bytes <= memory / 2):
            return
        ranks = local_world_size()  # which need the same windows
        self._cached = ranks > 1 or memory is None or self.shards.bytes <= memory
        self._room = (min(WINDOW_SHARE * memory, LARGEST_WINDOW) if memory else LARGEST_OF_UNKNOWN) / ranks
        self.shards.read_singly()
        self._reads_ahead = self.indices is None or bool((np.diff(self.indices) > 0).all())
        if self._reads_ahead and self._windows and not self._reader:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="windows")

    def close(self) -> None:
        """Ends the reading after the window that it is at, and forgets those in memory; `read_ahead` begins anew."""
        with self._lock:
            if self._reader:
                self._reader.shutdown(wait=False, cancel_futures=True)
            self._reader, self._held, self._front, self._reads_ahead = None, {}, 0, False

    def _holding(self, windows: Windows, i: int) -> Shards:
        """The shards with batch i's windows in memory; begins to read the next window, and forgets old ones."""
        numbers = self._numbers(windows, i)
        with self._lock:
            if not self._reader:  # closed meanwhile
                return self.shards
            if i < self._front - BEHIND:  # from an earlier place again
                self._held = {}
                self._front = i
            self._front = max(self._front, i)
            oldest = self._numbers(windows, max(self._front - BEHIND, 0)).start
            self._held = {n: held for n, held in self._held.items() if n >= oldest and not _failed(held)}
            for number in range(numbers.start, numbers.stop + 1):
                if number not in self._held:
                    self._held[number] = self._reader.submit(self._window, windows, number)
            futures = [self._held[number] for number in numbers]
        parts = [future.result() for future in futures]
        if len(parts) == 1:
            return parts[0][1]
        return self.shards.with_held([held for part, _ in parts for held in part])

    def _numbers(self, windows: Windows, i: int) -> range:
        """The windows, counted through all epochs, that batch i takes its samples from."""
        (epoch, batch), spec = divmod(i, self.batches), self.spec
        positions = sampling.rank_batch(self.samples, batch, spec.batch_size, spec.rank, spec.world_size)
        first, last = (epoch * len(windows) + windows.at(at) for at in (positions.start, positions[-1]))
        return range(first, last + 1)

    def _window(self, windows: Windows, number: int) -> tuple[list[Held], Shards]:
        """A window, counted through all epochs, in memory, or on its way into the cache where that is too little."""
        epoch, window = divmod(number, len(windows))
        parts = [self._spanned(part) for part in windows.read(window, self.spec.seed, epoch)]
        if sum(map(len, parts)) * self.shards.bytes / len(self.shards) > self._room:
            self.shards.read_ahead(parts)
            return [], self.shards
        held = self.shards.hold(parts, cached=self._cached)
        return held, self.shards.with_held(held)

    def _read_on(self, batch: int) -> None:
        """Begins to read an evaluation's batch, with what lies between its samples, unless they are far apart."""
        size = self.spec.batch_size
        part = range(min(batch * size, self.samples), min((batch + 1) * size, self.samples))
        if part and len(self._spanned(part)) <= SPARSEST * len(part):
            self._begin_to_read([part])

    def _begin_to_read(self, parts: list[range]) -> None:
        Thread(target=self.shards.read_ahead, args=([self._spanned(part) for part in parts],), daemon=True).start()

    def _spanned(self, part: range) -> range:
        """The samples of the shards from the first to the last of a part of the plan's."""
        if self.indices is None:
            return part
        return range(int(self.indices[part.start]), int(self.indices[part.stop - 1]) + 1)


def _failed(future: Future) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _check_mixed(shards: Shards) -> None:
    """Raises UserError if images of a class lie side by side, so that a window would hold few classes."""
    if len(shards) < 2:
        return
    places = np.linspace(0, len(shards) - 2, min(len(shards) - 1, 2**16)).astype(np.int64)
    labels = shards.labels(places)
    by_chance = ((np.bincount(labels) / len(labels)) ** 2).sum()
    if by_chance < 1 and (labels == shards.labels(places + 1)).mean() > (1 + by_chance) / 2:
        raise UserError(
            f"Images of a class lie side by side in {shards.folder}, and data.shuffle_window would shuffle those of "
            "few classes together; train without it."
        )
