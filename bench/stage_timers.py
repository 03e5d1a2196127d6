"""Times the stages of training one by one: reading records, making batches, mixing, the training step."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from math import ceil, prod
from typing import Any

import numpy as np
import torch

from emnist_dali import recipes
from emnist_dali.config import Affine, Config
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.loading import sampling
from emnist_dali.loading.backends import Batch, MakeBackend
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader
from emnist_dali.runtime import half_images
from emnist_dali.training import mixing
from emnist_dali.training.build import Training, build_training
from emnist_dali.training.trainer import Trainer
from limits import Cost
from timing import rate, synchronize

# The fewest optimizer steps in a repetition, however slow they are.
_MIN_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured: a resolved config, its data, and the requested batch size.

    On a CPU training splits the batch into micro-batches; the other stages and the peers take it whole.
    """

    config: Config
    shards: Shards
    stats: Stats
    batch_size: int
    threads: int
    seconds: float  # of a repetition

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.run.device)

    @property
    def max_ready(self) -> int:
        """The most batches that an idle loader has ready.

        Those of CpuBackend's ring are `threads` + 3, those in DALI's queues 6 at the largest setting measured.
        """
        return self.threads + 6

    def loader(
        self,
        *,
        indices: np.ndarray | None = None,
        affine: Affine | None = None,
        backend: str | MakeBackend | None = None,
        half: bool | None = None,
    ) -> Loader:
        """Training batches of `batch_size`; `backend` and `half` default to the config's."""
        half = half_images(self.config) if half is None else half
        return Loader(
            self.shards,
            BatchSpec(batch_size=self.batch_size, affine=affine),
            self.stats.pixel_spec(self.shards.shape, self.config.data.image_size, half=half),
            indices=indices,
            backend=backend or self.config.data.backend,
            device=self.device,
            threads=self.threads,
        )


def data_description(shards: Shards) -> str:
    """The data in one phrase; paths are relative, because result files are read on other machines."""
    manifest = shards.manifest
    return str(replace(manifest, origin=os.path.relpath(manifest.origin)))


def read(setup: Setup) -> float:
    """Images/s of reading records of random samples, one batch per call and one thread per batch."""
    samples = len(setup.shards)
    batch_size = min(setup.batch_size, samples)
    starts = range(0, samples - batch_size + 1, batch_size)
    batches = cycle([range(start, start + batch_size) for start in starts])

    def read_batch(_: int) -> int:
        positions = next(batches)
        setup.shards.records(sampling.shuffled(samples, positions, 0, 0))
        return len(positions)

    with ThreadPoolExecutor(setup.threads) as pool:
        return rate(lambda: sum(pool.map(read_batch, range(8 * setup.threads))), setup.seconds)


def read_cost(setup: Setup) -> Cost:
    _, sizes = setup.shards.records(np.arange(min(len(setup.shards), 4096)))
    return Cost(bytes=2 * float(sizes.mean()))


def endless(loader: Loader) -> Iterator[Batch]:
    """The batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def pipeline(setup: Setup, loader: Loader) -> float:
    """Images/s of finished batches on the device; batches made before the clock starts do not count."""
    with loader:
        batches = endless(loader)
        for _ in range(setup.max_ready):
            next(batches)
        synchronize(loader.device)
        return rate(lambda: len(next(batches).labels), setup.seconds, loader.device)


def pipeline_cost(setup: Setup) -> Cost:
    pixel_bytes = 2 if half_images(setup.config) else 4
    # Resident images are read as they are, one byte a pixel; the other backends read records.
    source = prod(setup.shards.shape) if setup.config.data.backend == "resident" else read_cost(setup).bytes / 2
    return Cost(bytes=source + setup.config.data.image_size**2 * pixel_bytes)


def mix(setup: Setup) -> float:
    """Images/s of mixing every batch with MixUp or CutMix, as in the recipe, or in `published` if it has none."""
    config, device, batch_size = setup.config, setup.device, setup.batch_size
    classes, size = len(setup.shards.manifest.classes), config.data.image_size
    settings = replace(config.training.mixing or recipes.published("balanced").training.mixing, probability=1.0)
    generator = sampling.generator(0, sampling.Stream.MIXING)
    dtype = torch.float16 if half_images(config) else torch.float32
    images = torch.randn((batch_size, 1, size, size), device=device).to(dtype)
    labels = torch.randint(classes, (batch_size,), device=device)

    def mix_batch() -> int:
        drawn = mixing.draw(settings, size, generator)
        mixing.mix(images, labels, drawn, classes, config.training.label_smoothing)
        return batch_size

    return rate(mix_batch, setup.seconds, device)


def mix_cost(setup: Setup) -> Cost:
    """An image, its partner and the result; the same for the targets."""
    pixel_bytes = 2 if half_images(setup.config) else 4
    classes = len(setup.shards.manifest.classes)
    return Cost(bytes=3 * (setup.config.data.image_size**2 * pixel_bytes + classes * 4))


def training_of_steps(config: Config, shards: Shards, steps: int, threads: int) -> Training:
    """A training whose epochs have `steps` optimizer steps, and which does not end.

    Weights hardly change, so that nothing diverges, and a class may be missing: neither changes the speed.
    """
    config = config.override({"lr": 1e-6, "class_weights": False, "logit_adjustment": 0.0, "epochs": 10**6})
    images = steps * config.training.accumulation * config.data.batch_size
    return build_training(config, shards, indices=np.resize(np.arange(len(shards)), images), threads=threads)


class TrainingTimer:
    """The training loop with one resident batch (`model`) and with the real pipeline (`train`), on one trainer.

    Each call is an epoch of as many steps as fill `setup.seconds`, at least 3. With `backend` the batches of `train`
    are its own.
    """

    def __init__(self, setup: Setup, backend: MakeBackend | None = None) -> None:
        config, shards = setup.config, setup.shards
        self.waits: list[float] = []  # data wait of each `train`
        self._epochs: dict[Loader, int] = {}
        # Calibrated without compiling, so that this happens, and is timed, once.
        eager = config.override({"backend": "synthetic", "compile": "off"})
        with training_of_steps(eager, shards, _MIN_STEPS, setup.threads) as calibration:
            for _ in range(2):  # the first warms up
                entry = self._epoch(calibration.trainer, calibration.loader)
        steps = max(_MIN_STEPS, ceil(setup.seconds / (entry["seconds"] / _MIN_STEPS)))
        self._training = training_of_steps(config, shards, steps, setup.threads)
        self.trainer, self._loader = self._training.trainer, self._training.loader
        if backend:
            self._loader = self._with_backend(backend)
        self.compile_seconds = self.trainer.warm_up() if config.run.compile != "off" else 0.0
        self._resident = self._with_backend("synthetic")
        for loader in (self._resident, self._loader):
            self._epoch(self.trainer, loader)

    def _with_backend(self, backend: str | MakeBackend) -> Loader:
        loader = self._training.loader
        return Loader(
            loader.shards,
            loader.batches,
            loader.pixels,
            indices=loader.plan.indices,
            backend=backend,
            device=loader.device,
        )

    def _epoch(self, trainer: Trainer, loader: Loader) -> dict[str, Any]:
        """The loader's next epoch, the first batches of which it has already made."""
        # From 1, because in epoch 0 the trainer may print how long the whole training will take.
        self._epochs[loader] = self._epochs.get(loader, 0) + 1
        trainer.begin(self._epochs[loader])
        return trainer.train_epoch(loader)

    def model(self) -> float:
        return self._epoch(self.trainer, self._resident)["images_per_second"]

    def train(self) -> float:
        entry = self._epoch(self.trainer, self._loader)
        self.waits.append(entry["data_wait"])
        return entry["images_per_second"]

    def close(self) -> None:
        """Ends the prefetching."""
        for loader in (self._resident, self._loader, self._training):
            loader.close()
