"""All images as one tensor on the device, in batched torch: the upper bound for data that fit there.

With `equalize_once` they are equalized before the first batch.
"""

import torch

from .whole_batches import Preprocess, equalize
from .work import Batch, Shuffled, Stream, Work


def stream(work: Work, equalize_once: bool) -> Stream:
    images = torch.from_numpy(work.images).to(work.device)
    if equalize_once:
        images = torch.cat([equalize(part) for part in images.split(4096)])
    preprocess = Preprocess(work, images.shape[1:], equalized=equalize_once)
    return Stream(
        Batch(preprocess(images.index_select(0, indices), indices), indices)
        for indices in Shuffled(work, work.device)
    )
