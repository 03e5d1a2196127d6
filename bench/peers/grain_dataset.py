"""Google Grain: a MapDataset, shuffled, mapped image by image and put into batches, read by `mp_prefetch`'s processes
(its documentation, «Dataset basics» and «Performance»)."""

import grain
import numpy as np
import torch

from .single_images import Preprocess
from .work import Stream, Work, to_device


class Transform(grain.transforms.Map):
    def __init__(self, work: Work) -> None:
        self._images, self._preprocess = work.images, Preprocess(work)

    def map(self, index: int) -> tuple[np.ndarray, np.int64]:
        return self._preprocess(self._images[index], index), np.int64(index)


def stream(work: Work, workers: int, state: dict | None = None) -> Stream:
    dataset = (
        grain.MapDataset.range(len(work.images))
        .shuffle(seed=0)
        .repeat()
        .map(Transform(work))
        .batch(work.batch_size, drop_remainder=True)
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))  # images are in memory
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    )
    iterator = iter(dataset)
    if state is not None:
        iterator.set_state(state)
    pairs = (tuple(map(torch.from_numpy, batch)) for batch in iterator)
    return Stream(to_device(pairs, work), ahead=2 * workers, state=iterator.get_state)
