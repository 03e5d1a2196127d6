"""The stages of the pipeline as arrays: what images go through on their way to the model.

Nothing is computed twice: every stage comes from the code that training itself calls.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..config import Config
from ..data.shards import Shards
from ..data.stats import Stats
from ..loading import sampling
from ..loading.batch_plan import BatchPlan, BatchSpec
from ..loading.validation import validation_images
from ..pipelines.fused import Preprocess
from ..training import mixing

ROWS = 5  # images of a batch that are traced
SEARCHED_BATCHES = 100  # for one that MixUp mixes and one that CutMix does

_RESIZE = np.empty((0, 2, 3), np.float32)
_IDENTITY = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)


@dataclass(frozen=True)
class Trace:
    """n images of one training batch: `stages` are (n, H, W) uint8 or (n, S, S) float32 by name, in order.

    `indices` (n,) are their indices in the train part. With augmentation the batch is mixed by `mix`, the labels of
    the images mixed in are `partners` (n,), and `targets` (n, classes) are soft.
    """

    batch: int
    indices: np.ndarray
    labels: np.ndarray
    stages: dict[str, np.ndarray]
    mix: mixing.Mix
    partners: np.ndarray
    targets: np.ndarray


def training_plan(config: Config, shards: Shards) -> BatchPlan:
    """The batches that a single process trains on, none larger than the data."""
    indices, _, _ = validation_images(shards, config.data, config.training.seed)
    spec = BatchSpec(
        batch_size=min(config.data.batch_size, len(indices)),
        affine=config.data.affine,
        balanced=config.training.balanced_sampling,
        window=config.data.shuffle_window,
        seed=config.training.seed,
    )
    return BatchPlan(shards, spec, config.data.image_size, indices)


def mix_of(config: Config, plan: BatchPlan, batch: int) -> mixing.Mix:
    """How batch `batch` of the first epoch is mixed."""
    training = config.training
    if not training.mixing or batch >= training.mixing.until * training.epochs * plan.batches:
        return mixing.Mix()
    generator = sampling.generator(training.seed, sampling.Stream.MIXING, 0, batch)
    return mixing.draw(training.mixing, plan.size, generator)


def choose_batches(config: Config, plan: BatchPlan, label: int | None, augmented: bool) -> list[int]:
    """Which of the first SEARCHED_BATCHES batches to show; none if no image in them has the class `label`.

    The one with the most images to show, or if the recipe mixes, the most evenly mixed of MixUp's and of CutMix's.
    """
    images = {i: len(_places(plan.batch(i).labels, label)) for i in range(min(plan.batches, SEARCHED_BATCHES))}
    images = {i: number for i, number in images.items() if number}
    mixes = {i: mix_of(config, plan, i) for i in images} if augmented else {}
    mixed = [i for i, mix in mixes.items() if mix.weight < 1]
    kinds = ([i for i in mixed if mixes[i].box is None], [i for i in mixed if mixes[i].box])
    most_even = [min(kind, key=lambda i: abs(mixes[i].weight - 0.5)) for kind in kinds if kind]
    return most_even or sorted(images, key=lambda i: -images[i])[:1]


def _places(labels: np.ndarray, label: int | None) -> np.ndarray:
    """Which images of a batch with `labels` (n,) to trace: those of class `label`, or each of another class."""
    if label is None:
        return np.sort(np.unique(labels, return_index=True)[1])[:ROWS]
    return np.flatnonzero(labels == label)[:ROWS]


def trace(
    config: Config, plan: BatchPlan, stats: Stats, batch: int, label: int | None = None, augmented: bool = True
) -> Trace:
    """Some images of batch `batch` of the first epoch, all of class `label` or each of another class."""
    shards, training, size = plan.shards, config.training, plan.size
    planned = plan.batch(batch)
    places = _places(planned.labels, label)
    n = len(places)
    # Partners are at each other's place in the reversed batch, and still are in this selection.
    selected = np.concatenate([places, plan.spec.local_batch_size - 1 - places[::-1]])
    indices, labels = planned.indices[selected], planned.labels[selected]

    stages = {"decoded": shards.images(indices)}
    if stats.equalize:
        stages["equalized"] = equalize(shards, indices)
    stages["resized"] = preprocess(shards, stats, size, indices, _RESIZE)
    images, mix = torch.from_numpy(stages["resized"])[:, None], mixing.Mix()
    if augmented:
        if plan.spec.affine:
            stages["warped"] = preprocess(shards, stats, size, indices, planned.matrices[selected])
            images = torch.from_numpy(stages["warped"])[:, None]
        mix = mix_of(config, plan, batch)
    classes = len(shards.manifest.classes)
    mixed, targets = mixing.mix(images, torch.from_numpy(labels), mix, classes, training.label_smoothing)
    if mix.weight < 1:
        stages["partner"], stages["mixed"] = images[:, 0].numpy()[::-1], mixed[:, 0].numpy()
    return Trace(
        batch=batch,
        indices=indices[:n],
        labels=labels[:n],
        stages={name: images[:n] for name, images in stages.items()},
        mix=mix,
        partners=labels[::-1][:n],
        targets=targets[:n].numpy(),
    )


def preprocess(shards: Shards, stats: Stats, size: int, indices: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """(n, size, size) float32: the records of `indices` (n,) through the kernel, resized or warped by `matrices`."""
    out = np.empty((len(indices), size, size), np.float32)
    kernel = Preprocess(stats.pixel_spec(shards.shape, size), compressed=shards.compressed)
    shards.preprocess(kernel, indices, matrices, out)
    return out


def equalize(shards: Shards, indices: np.ndarray) -> np.ndarray:
    """(n, H, W) uint8: the records of `indices` (n,) as the kernel equalizes them."""
    height, width = shards.shape
    # Images need not be square, but the kernel's output is: the identity warp leaves their pixels alone.
    identity = np.repeat(_IDENTITY, len(indices), axis=0)
    out = preprocess(shards, Stats(mean=0, std=1), max(height, width), indices, identity)
    return denormalize(out[:, :height, :width], Stats(mean=0, std=1))


def denormalize(images: np.ndarray, stats: Stats) -> np.ndarray:
    """Normalized images as uint8 grey levels; levels beyond 0 … 255 are clipped."""
    return np.rint((images * stats.std + stats.mean) * 255).clip(0, 255).astype(np.uint8)


def evenly_spaced(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `indices`, evenly spaced."""
    return indices if len(indices) <= most else indices[np.linspace(0, len(indices) - 1, most).astype(np.int64)]
