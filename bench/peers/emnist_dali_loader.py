"""This project's loader, from LZ4 records as `prepare` packs them, or from raw ones.

It draws a new warp for every image and epoch, where the others look theirs up.
"""

from collections.abc import Iterator

import numpy as np
import torch

from emnist_dali.config import Affine
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.data.stats import Stats
from emnist_dali.loading.backends import automatic
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader

from .work import Batch, Stream, Work


def write(work: Work, codec: str) -> None:
    whole = Shards(work.shards, "train")
    labels = whole.labels(np.arange(len(work.images)))
    parts = {"train": Part(work.images, labels), "test": Part(work.images[:1], labels[:1])}
    pack(Source(str(work.shards), whole.manifest.classes, parts, (), official=False), work.name, work.own, codec)


def stream(work: Work, codec: str, state: int = 0) -> Stream:
    shards = Shards(work.own, "train")
    affine = Affine(**{**work.affine, "rotation": tuple(work.affine["rotation"])}) if work.affine else None
    loader = Loader(
        shards,
        BatchSpec(batch_size=work.batch_size, affine=affine),
        Stats(work.mean, work.std).pixel_spec(shards.shape, work.size, half=work.half),
        backend=automatic(shards, torch.device(work.device)),
        device=work.device,
        threads=work.threads,
    )
    taken = state
    loader.start(*divmod(taken, len(loader)))

    def batches() -> Iterator[Batch]:
        nonlocal taken
        while True:
            for images, labels in loader:
                taken += 1
                yield Batch(images, labels)

    def planned(batch: Batch) -> Batch:
        plan = loader.plan.batch(taken - 1)
        return Batch(batch.images, torch.from_numpy(plan.indices), plan.matrices if affine else None)

    # Those of the CPU backend's ring are `threads` + 3, those in DALI's queues 6 at the largest setting measured.
    return Stream(batches(), ahead=work.threads + 6, state=lambda: taken, planned=planned)
