"""torchvision's v2 transforms on whole batches, on the device."""

import torch
from torchvision.transforms import v2

from .whole_batches import equalize
from .work import Batch, Missing, Shuffled, Stream, Work


def stream(work: Work) -> Stream:
    if work.affine:
        raise Missing("torchvision draws one warp for the whole batch.")
    images = torch.from_numpy(work.images)[:, None]
    transform = v2.Compose(
        [
            # torchvision's own equalize follows PIL, whose result differs from OpenCV's.
            v2.Lambda(equalize),
            # Resizing last, as floats, gives the same result and was faster on 2 threads than resizing uint8.
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([work.mean], [work.std], inplace=True),
            v2.ToDtype(work.dtype),
            v2.Resize((work.size, work.size), antialias=False),
        ]
    )

    def batches():
        for indices in Shuffled(work):
            batch = images.index_select(0, indices)
            if work.on_gpu:
                batch = batch.pin_memory().to(work.device, non_blocking=True)
                indices = indices.pin_memory().to(work.device, non_blocking=True)
            yield Batch(transform(batch), indices)

    return Stream(batches())
