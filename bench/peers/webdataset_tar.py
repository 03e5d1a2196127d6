"""WebDataset: tars of raw pixels, resampled, shuffled in a buffer and put together in the workers, in its WebLoader
(its documentation, «FAQ» on training).

PNGs would be decoded by PIL one by one.
"""

import numpy as np
import torch
import webdataset

from .single_images import Preprocess
from .work import Stream, Work, to_device

SHARD, BUFFER = 4096, 8192  # images


def write(work: Work, **_: object) -> None:
    work.own.mkdir()
    with webdataset.ShardWriter(str(work.own / "%05d.tar"), maxcount=SHARD, verbose=0) as writer:
        for index, image in enumerate(work.images):
            writer.write({"__key__": f"{index:08}", "pixels": image.tobytes(), "index": str(index).encode()})


def stream(work: Work, workers: int) -> Stream:
    preprocess, shape = Preprocess(work), work.shape[1:]

    def make(row: dict[str, bytes]) -> tuple[torch.Tensor, int]:
        index = int(row["index"])
        return torch.from_numpy(preprocess(np.frombuffer(row["pixels"], np.uint8).reshape(shape), index)), index

    shards = sorted(map(str, work.own.glob("*.tar")))
    dataset = (
        webdataset.WebDataset(shards, resampled=True, shardshuffle=True)
        .shuffle(min(BUFFER, work.shape[0]))
        .map(make)
        .batched(work.batch_size, partial=False)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    return Stream(to_device(loader, work), ahead=2 * workers)
