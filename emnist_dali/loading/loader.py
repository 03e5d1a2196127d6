"""Batches on the training device, from whichever engine makes them.

    loader = Loader(Shards(folder, "train"), batch_size=512, size=112, stats=statistics(folder, 112))
    for epoch in range(20):
        for images, labels in loader:
            ...

A batch stays valid until the second `next()` after it.
"""

from collections.abc import Iterator

import numpy as np
import torch

from ..config import Affine
from ..core import distributed
from ..core.errors import UserError
from ..core.machine import available_cpus
from ..data.shards import Shards
from ..data.stats import Stats
from .backends import BACKENDS, Batch, CpuBackend, DaliBackend, SyntheticBackend
from .batch_plan import Plan


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
        if batch_size % world:
            raise UserError(f"A batch of {batch_size} images does not divide by {world} ranks; change --batch-size.")
        self.plan = Plan(
            shards,
            members=members,
            batch_size=batch_size,
            size=size,
            accumulation=accumulation,
            train=train,
            affine=affine,
            seed=seed,
            rank=rank,
            world=world,
        )
        if not self.plan.batches:
            raise UserError(
                f"{shards.folder} gives {self.plan.samples} {shards.part} images, fewer than the "
                f"{batch_size * accumulation} of one step; lower --batch-size."
            )
        self.stats, self.accumulation = stats, accumulation
        self.backend, self.device, self.half = backend, torch.device(device), half
        self.threads = threads or max(available_cpus() // distributed.local_world_size(), 1)
        self._start = 0
        self._feed: CpuBackend | DaliBackend | SyntheticBackend | None = None

    def __len__(self) -> int:
        """Batches an epoch, wherever it starts."""
        return self.plan.batches

    def start(self, epoch: int, step: int = 0) -> None:
        """The next iteration begins at optimizer step `step` of `epoch`, both from 0."""
        self._start = epoch * len(self) + step * self.accumulation

    def __iter__(self) -> Iterator[Batch]:
        self.plan.shards.check()
        first = self._start
        feed = self.prefetch()
        last = self._start = (first // len(self) + 1) * len(self)
        for _ in range(first, last):
            yield feed.next()

    def prefetch(self) -> CpuBackend | DaliBackend | SyntheticBackend:
        """Begins with the batches of the next iteration; the iteration itself does so otherwise."""
        if self._feed is None or self._feed.position != self._start:
            self.close()
            self._feed = BACKENDS[self.backend](
                self.plan, self._start, self.stats, self.device, self.half, self.threads
            )
        return self._feed

    def close(self) -> None:
        """Ends the prefetching; the loader can be iterated again."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
