"""Batches on the training device, from whichever engine makes them.

    loader = Loader(Shards(folder, "train"), batch_size=512, size=112, stats=statistics(folder, 112))
    for epoch in range(20):
        for images, labels in loader:
            ...

A batch stays valid until the second `next()` after it.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from . import order
from .config import Affine
from .errors import UserError
from .pipelines import affine as affine_matrices
from .pipelines.fused import Preprocess
from .shards import Shards
from .stats import Stats


class Batch(NamedTuple):
    """images (N, 1, S, S) float32 or float16, labels (N,) int64; padded rows have label −1."""

    images: torch.Tensor
    labels: torch.Tensor


class PlannedBatch(NamedTuple):
    """One batch before preprocessing: sample indices (n,), labels (N,), matrices (N, 2, 3) or (0, 2, 3)."""

    indices: np.ndarray
    labels: np.ndarray
    matrices: np.ndarray


def available_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Plan:
    """What is in batch i, counted through all epochs from the first: a pure function of i."""

    def __init__(
        self,
        shards: Shards,
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

    def order(self, epoch: int) -> np.ndarray:
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
        indices = order.rank_batch(self.order(epoch), batch, self.batch_size, self.rank, self.world)
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


class Loader:
    """Iterates the batches of one epoch; the next iteration is the next epoch.

    `members` are the samples to take, all of the part without it. With `train` they are shuffled anew each epoch
    by `seed`, warped by `affine`, and what does not fill `accumulation` batches is dropped; without, they come in
    their order and the last batch is padded. `batch_size` counts the images of all `world` ranks. `half` gives
    float16 on a GPU. `backend` is dali, cpu or synthetic (one random batch again and again).

    Raises UserError where a batch does not divide by the ranks, the data do not fill a step, a shard is damaged
    or has changed, or DALI is missing.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        batch_size: int,
        size: int,
        stats: Stats,
        members: np.ndarray | None = None,
        train: bool = True,
        affine: Affine | None = None,
        seed: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        backend: str = "cpu",
        device: torch.device | str = "cpu",
        half: bool = False,
        threads: int | None = None,
    ) -> None:
        members = np.arange(len(shards)) if members is None else members
        if batch_size % world:
            raise UserError(f"A batch of {batch_size} images does not divide by {world} ranks; change --batch-size.")
        self.plan = Plan(shards, members, batch_size, size, accumulation, train, affine, seed, rank, world)
        if not self.plan.batches:
            raise UserError(
                f"{shards.folder} gives {len(members)} {shards.part} images, fewer than the "
                f"{batch_size * accumulation} of one step; lower --batch-size."
            )
        self.stats, self.accumulation = stats, accumulation
        self.backend, self.device, self.half = backend, torch.device(device), half
        self.threads = threads or available_cpus()
        self._start = 0
        self._feed: _CpuFeed | _DaliFeed | _SyntheticFeed | None = None

    def __len__(self) -> int:
        """Batches an epoch, wherever it starts."""
        return self.plan.batches

    def start(self, epoch: int, step: int = 0) -> None:
        """The next iteration begins at optimizer step `step` of `epoch`, both from 0."""
        self._start = epoch * len(self) + step * self.accumulation

    def __iter__(self) -> Iterator[Batch]:
        self.plan.shards.check()
        first = self._start
        last = self._start = (first // len(self) + 1) * len(self)
        if self._feed is None or self._feed.position != first:
            self.close()
            self._feed = _FEEDS[self.backend](self, first)
        for _ in range(first, last):
            yield self._feed.next()

    def close(self) -> None:
        """Ends the prefetching; the loader can be iterated again."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Slot:
    images: torch.Tensor
    labels: torch.Tensor
    # On a GPU: when the copy to the device is through and the slot may be filled again.
    copied: "torch.cuda.Event | None" = field(default=None)


class _CpuFeed:
    """Worker threads, each filling a whole slot of a ring with the fused kernel."""

    def __init__(self, loader: Loader, first: int) -> None:
        plan, stats = loader.plan, loader.stats
        self.position = self._ahead = first
        self._plan, self._device, self._half = plan, loader.device, loader.half
        self._preprocess = Preprocess(
            plan.shards.shape, plan.size, stats.mean, stats.std, compressed=plan.shards.compressed
        )
        self._pool = ThreadPoolExecutor(loader.threads, thread_name_prefix="loader")
        self._filling: deque[tuple[_Slot, Future]] = deque()
        self._handed: deque[_Slot] = deque()
        pin, share = self._device.type == "cuda", plan.batch_size // plan.world
        # One batch a thread in the making, one ready, and the two that the consumer may hold.
        for _ in range(loader.threads + 3):
            images = torch.empty((share, 1, plan.size, plan.size), pin_memory=pin)
            self._submit(_Slot(images, torch.empty(share, dtype=torch.int64, pin_memory=pin)))

    def _submit(self, slot: _Slot) -> None:
        self._filling.append((slot, self._pool.submit(self._fill, slot, self._ahead)))
        self._ahead += 1

    def _fill(self, slot: _Slot, i: int) -> None:
        if slot.copied is not None:
            slot.copied.synchronize()
        planned = self._plan.batch(i)
        slot.labels.numpy()[:] = planned.labels
        images = slot.images.numpy()[:, 0]
        self._plan.shards.preprocess(self._preprocess, planned.indices, planned.matrices, images)
        images[len(planned.indices) :] = 0

    def next(self) -> Batch:
        if len(self._handed) == 2:
            self._submit(self._handed.popleft())
        slot, filled = self._filling.popleft()
        filled.result()
        self._handed.append(slot)
        self.position += 1
        if self._device.type == "cpu":
            return Batch(slot.images, slot.labels)
        images = slot.images.to(self._device, non_blocking=True)
        labels = slot.labels.to(self._device, non_blocking=True)
        slot.copied = torch.cuda.Event()
        slot.copied.record(torch.cuda.current_stream(self._device))
        return Batch(images.half() if self._half else images, labels)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _DaliFeed:
    """The DALI graph, on a GPU or on DALI's CPU operators."""

    def __init__(self, loader: Loader, first: int) -> None:
        try:
            from .pipelines import dali
        except ImportError as error:
            raise UserError(
                f"DALI could not be imported ({error}); install nvidia-dali-cuda120 (Linux) or take --backend cpu."
            ) from error
        plan, on_gpu = loader.plan, loader.device.type == "cuda"
        self.position = self._first = first
        self._plan, self._run = plan, dali.run
        # DALI has LZ4 on the GPU only.
        self._compressed = on_gpu and plan.shards.compressed
        self._blocks = plan.batch_size // plan.world // dali.block_size(plan.batch_size // plan.world)
        self._error: UserError | None = None
        self._pipeline = dali.build(
            self._source,
            batch_size=plan.batch_size // plan.world,
            device_id=(loader.device.index or 0) if on_gpu else None,
            threads=loader.threads,
            compressed=self._compressed,
            warped=plan.affine is not None,
            shape=plan.shards.shape,
            size=plan.size,
            mean=loader.stats.mean,
            std=loader.stats.std,
            half=loader.half,
        )

    def _source(self, i: int) -> tuple:
        try:
            planned = self._plan.batch(self._first + i)
            # Padding repeats a sample; its label says that it does not count.
            indices = (
                np.resize(planned.indices, len(planned.labels)) if len(planned.indices) else self._plan.members[:1]
            )
            indices = np.resize(indices, len(planned.labels))
            parts = [np.split(planned.labels, self._blocks)]
            if self._compressed:
                records = [self._plan.shards.records(block) for block in np.split(indices, self._blocks)]
                parts += [[r for r, _ in records], [sizes.astype(np.int32) for _, sizes in records]]
            else:
                images = self._plan.shards.images(indices)[..., None]
                parts.append(images.reshape(self._blocks, -1, *images.shape[1:]))
            if len(planned.matrices):
                parts.append(np.split(planned.matrices, self._blocks))
            return tuple(parts)
        except UserError as error:  # DALI would wrap it in a traceback of its own
            self._error = error
            raise

    def next(self) -> Batch:
        try:
            images, labels = self._run(self._pipeline)
        except RuntimeError:
            if self._error:
                raise self._error from None
            raise
        self.position += 1
        return Batch(images, labels)

    def close(self) -> None:
        del self._pipeline


class _SyntheticFeed:
    """One resident random batch: what training could do if data cost nothing."""

    def __init__(self, loader: Loader, first: int) -> None:
        self.position, plan = first, loader.plan
        generator = torch.Generator().manual_seed(plan.seed)
        share = plan.batch_size // plan.world
        images = torch.randn((share, 1, plan.size, plan.size), generator=generator)
        labels = torch.randint(len(plan.shards.manifest.classes), (share,), generator=generator)
        dtype = torch.float16 if loader.half else torch.float32
        self._batch = Batch(images.to(loader.device, dtype), labels.to(loader.device))

    def next(self) -> Batch:
        self.position += 1
        return self._batch

    def close(self) -> None:
        pass


_FEEDS = {"cpu": _CpuFeed, "dali": _DaliFeed, "synthetic": _SyntheticFeed}
