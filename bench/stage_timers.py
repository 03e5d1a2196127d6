"""The stages of training, each on its own: records out of the shards, batches, mixing, the training step."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from math import ceil
from time import perf_counter
from typing import Any

import numpy as np
import torch

from emnist_dali import recipes
from emnist_dali.config import Config
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.loading import sampling
from emnist_dali.loading.backends import Batch
from emnist_dali.loading.loader import Loader
from emnist_dali.runtime import half_images
from emnist_dali.training import mixing
from emnist_dali.training.trainer import Trainer, training_loader
from limits import Cost
from timing import rate, synchronize


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured: a resolved config, its data, and the batch that was asked for.

    On a CPU training cuts that batch into micro-batches; the other stages and the peers take it whole.
    """

    config: Config
    shards: Shards
    stats: Stats
    batch_size: int
    threads: int
    seconds: float

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.run.device)

    def loader(self, **changes: Any) -> Loader:
        """The training loader with whole batches; plain resize without `affine`."""
        arguments = {
            "batch_size": self.batch_size,
            "size": self.config.data.image_size,
            "stats": self.stats,
            "backend": self.config.data.backend,
            "device": self.device,
            "half": half_images(self.config),
            "threads": self.threads,
        }
        return Loader(self.shards, **{**arguments, **changes})


def data(shards: Shards) -> str:
    """The data in one phrase for a record: a path is told from here, since records are read on other machines."""
    manifest = shards.manifest
    return str(replace(manifest, origin=os.path.relpath(manifest.origin)))


# At least so many optimizer steps a repetition, however slow they are.
_STEPS = 3


def read(shards: Shards, batch_size: int, threads: int, seconds: float) -> float:
    """Records of random samples, a batch at a time and a batch a thread."""
    stream = _positions(len(shards), batch_size)

    def batch(_: int) -> int:
        places = next(stream)
        shards.records(sampling.shuffled(len(shards), places, 0, 0))
        return len(places)

    with ThreadPoolExecutor(threads) as pool:
        return rate(lambda: sum(pool.map(batch, range(8 * threads))), seconds)


def _positions(samples: int, batch_size: int) -> Iterator[range]:
    """Whole batches of an epoch's places, again and again."""
    size = min(batch_size, samples)
    return cycle([range(start, start + size) for start in range(0, samples - size + 1, size)])


def read_cost(shards: Shards) -> Cost:
    _, sizes = shards.records(np.arange(min(len(shards), 4096)))
    return Cost(bytes=2 * float(sizes.mean()))


def forever(loader: Loader) -> Iterator[Batch]:
    """The batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def pipeline(loader: Loader, seconds: float) -> float:
    """Finished batches on the device; what was made ahead before the clock started is not counted."""
    with loader:
        stream = forever(loader)
        for _ in range(ahead(loader)):
            next(stream)
        synchronize(loader.device)
        return rate(lambda: len(next(stream).labels), seconds, loader.device)


def ahead(loader: Loader) -> int:
    """Batches that a loader may hold ready: those of CpuBackend's ring or DALI's queue, and then some."""
    return loader.threads + 4


def pipeline_cost(shards: Shards, size: int, half: bool) -> Cost:
    return Cost(bytes=read_cost(shards).bytes / 2 + size**2 * (2 if half else 4))


def mix(config: Config, batch_size: int, classes: int, seconds: float) -> float:
    """Half MixUp, half CutMix: as the recipe draws them, as `seed` does where it has none."""
    how = config.training.mixing or recipes.seed("balanced").training.mixing
    generator = sampling.generator(0, sampling.Stream.MIXING)
    size, device = config.data.image_size, torch.device(config.run.device)
    dtype = torch.float16 if half_images(config) else torch.float32
    images = torch.randn((batch_size, 1, size, size), device=device).to(dtype)
    labels = torch.randint(classes, (batch_size,), device=device)

    def batch() -> int:
        drawn = mixing.draw(replace(how, probability=1.0), size, generator)
        mixing.mix(images, labels, drawn, classes, config.training.label_smoothing)
        return batch_size

    return rate(batch, seconds, device)


def mix_cost(config: Config, classes: int) -> Cost:
    """An image, its partner and the result; the targets likewise."""
    item = 2 if half_images(config) else 4
    return Cost(bytes=3 * (config.data.image_size**2 * item + classes * 4))


class Training:
    """The real loop, with the model's synthetic batch or with the real pipeline: one trainer for both.

    Every call of `model` and `train` is an epoch of as many steps as fill `seconds`, at least 3.
    """

    def __init__(self, config: Config, shards: Shards, stats: Stats, threads: int, seconds: float) -> None:
        # The speed of a step does not depend on it, and nothing diverges.
        self._config = config.override({"lr": 1e-6})
        self._shards, self._stats, self._threads = shards, stats, threads
        classes = shards.manifest.classes
        calibration = self._loader("synthetic", _STEPS)
        counts = [max(count, 1) for count in shards.manifest.counts["train"]]
        self.trainer = Trainer(self._config, calibration, classes, counts)
        self.compile_seconds = self.trainer.warm_up() if config.run.compile == "on" else 0.0
        self.waits: list[float] = []
        self._epochs: dict[Loader, int] = {}
        self._run(calibration)
        started = perf_counter()
        self._run(calibration)
        steps = max(_STEPS, ceil(seconds / ((perf_counter() - started) / _STEPS)))
        self._synthetic, self._real = self._loader("synthetic", steps), self._loader(config.data.backend, steps)
        self._run(self._real)

    def _loader(self, backend: str, steps: int) -> Loader:
        data, training = self._config.data, self._config.training
        members = np.resize(np.arange(len(self._shards)), steps * training.accumulation * data.batch_size)
        config = replace(self._config, data=replace(data, backend=backend))
        return training_loader(config, self._shards, self._stats, members, self._threads)

    def _run(self, loader: Loader) -> dict:
        """The loader's next epoch: its prefetching goes on where the last one ended."""
        self.trainer.loader, self.trainer.steps_per_epoch = loader, len(loader) // loader.accumulation
        # From 1, because the loop may say of epoch 0 how long a training takes.
        epoch = self._epochs[loader] = self._epochs.get(loader, 0) + 1
        self.trainer.begin(epoch)
        return self.trainer.train_epoch()

    def model(self) -> float:
        return self._run(self._synthetic)["images_per_second"]

    def train(self) -> float:
        record = self._run(self._real)
        self.waits.append(record["data_wait"])
        return record["images_per_second"]

    def close(self) -> None:
        self._real.close()
