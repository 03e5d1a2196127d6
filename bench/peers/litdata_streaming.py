"""LitData: an optimized dataset on the local disk, read by its StreamingDataLoader (its README, «Quick start»)."""

import litdata
import numpy as np
import torch

from .single_images import Preprocess
from .work import Stream, Work, endless, to_device

CHUNK = 4096  # images of 28×28 make 3 MB


class Images(litdata.StreamingDataset):
    def __init__(self, work: Work) -> None:
        super().__init__(str(work.own), shuffle=True, drop_last=True)
        self._preprocess = Preprocess(work)

    def __getitem__(self, place: object) -> tuple[torch.Tensor, int]:
        image, index = super().__getitem__(place)
        return torch.from_numpy(self._preprocess(image, index)), index


def write(work: Work, **_: object) -> None:
    litdata.optimize(
        fn=_row,
        inputs=list(zip(work.images, range(len(work.images)), strict=True)),
        output_dir=str(work.own),
        chunk_size=CHUNK,
        num_workers=work.threads,
    )


def _row(row: tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
    return row


def stream(work: Work, workers: int, state: dict | None = None) -> Stream:
    loader = litdata.StreamingDataLoader(
        Images(work), batch_size=work.batch_size, num_workers=workers, drop_last=True, pin_memory=work.on_gpu
    )
    if state is not None:
        loader.load_state_dict(state)
    return Stream(to_device(endless(loader), work), ahead=2 * workers, state=loader.state_dict)
