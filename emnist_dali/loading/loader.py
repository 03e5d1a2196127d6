"""Batches on the training device, from whichever backend makes them.

    loader = Loader.from_config(Shards(folder, "train"), recipe("cpu"))
    for epoch in range(20):
        for images, labels in loader:
            ...

A batch stays valid until the second `next()` after it.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..core.machine import available_cpus
from ..data.shards import Shards
from ..data.stats import Stats, statistics
from ..pipelines.pixels import PixelSpec
from ..runtime import half_images, resolve
from .backends import BACKENDS, Backend, Batch, MakeBackend, automatic
from .batch_plan import BatchPlan, BatchSpec


class Loader:
    """Iterates the batches of one epoch; the next iteration is the next epoch.

    `indices` (n,) are the samples of `shards` to take, None for all. `backend` is "dali", "resident", "cpu" or
    "synthetic" (one random batch again and again), or makes a backend of your own.

    Raises UserError where the samples do not fill a step, a shard is damaged or has changed, or DALI is missing.

    >>> from emnist_dali import Loader, Shards, prepare, recipe
    >>> shards = Shards(prepare("digits", "glyphs"), "train")
    >>> loader = Loader.from_config(shards, recipe("cpu", "digits"))
    >>> with loader:
    ...     images, labels = next(iter(loader))
    >>> images.shape, labels.shape
    (torch.Size([512, 1, 24, 24]), torch.Size([512]))
    """

    def __init__(
        self,
        shards: Shards,
        batches: BatchSpec,
        pixels: PixelSpec,
        *,
        indices: np.ndarray | None = None,
        backend: str | MakeBackend = "cpu",
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.plan = BatchPlan(shards, batches, pixels.size, indices)
        if not self.plan.batches:
            raise UserError(
                f"{shards.folder} gives {self.plan.samples} {shards.part} images, fewer than the "
                f"{batches.batch_size * batches.accumulation} of one step; lower data.batch_size."
            )
        self.shards, self.batches, self.pixels = shards, batches, pixels
        self.device = torch.device(device)
        self._make = BACKENDS[backend] if isinstance(backend, str) else backend
        self._threads = threads or max(available_cpus() // distributed.local_world_size(), 1)
        self._start = 0
        self._backend: Backend | None = None

    @classmethod
    def from_config(
        cls,
        shards: Shards,
        config: Config,
        *,
        indices: np.ndarray | None = None,
        train: bool = True,
        stats: Stats | None = None,
        threads: int | None = None,
    ) -> "Loader":
        """The batches that `config` trains on, or with `train` False is evaluated on, on this rank.

        `stats` are those of the split's train part by default.
        """
        config = with_backend(resolve(config), shards)
        data, backend = config.data, config.data.backend
        if backend == "synthetic" and not train:
            backend = automatic(shards, torch.device(config.run.device))
        stats = stats or statistics(shards.folder, data.image_size, data.equalize)
        return cls(
            shards,
            BatchSpec(
                batch_size=data.batch_size,
                train=train,
                affine=data.affine if train else None,
                balanced=config.training.balanced_sampling,
                window=data.shuffle_window,
                accumulation=config.training.accumulation if train else 1,
                seed=config.training.seed,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            ),
            stats.pixel_spec(shards.shape, data.image_size, half=half_images(config)),
            indices=indices,
            backend=backend,
            device=config.run.device,
            threads=threads,
        )

    def __len__(self) -> int:
        """Batches an epoch, wherever it starts."""
        return self.plan.batches

    def start(self, epoch: int, step: int = 0) -> None:
        """The next iteration begins at optimizer step `step` of `epoch`, both from 0."""
        self._start = epoch * len(self) + step * self.batches.accumulation

    def __iter__(self) -> Iterator[Batch]:
        self.shards.check()
        first = self._start
        backend = self.prefetch()
        last = self._start = (first // len(self) + 1) * len(self)
        for _ in range(first, last):
            yield backend.next()

    def prefetch(self) -> Backend:
        """Begins with the batches of the next iteration; the iteration itself does so otherwise."""
        if self._backend is None or self._backend.position != self._start:
            self.close()
            self._backend = self._make(self.plan, self._start, self.pixels, self.device, self._threads)
        return self._backend

    def close(self) -> None:
        """Ends the prefetching; the loader can be iterated again."""
        self.plan.close()
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_backend(config: Config, shards: Shards) -> Config:
    """A resolved config, with `data.backend auto` decided for `shards`."""
    if config.data.backend != "auto":
        return config
    backend = automatic(shards, torch.device(config.run.device))
    return replace(config, data=replace(config.data, backend=backend))
