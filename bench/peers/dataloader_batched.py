"""PyTorch's DataLoader over whole batches: `batch_size=None`, and a sampler of batches (its documentation, «Disabling
automatic batching»)."""

import torch
from torch.utils.data import DataLoader, Dataset

from .whole_batches import Preprocess
from .work import Shuffled, Stream, Work, to_device


class Batches(Dataset):
    def __init__(self, work: Work) -> None:
        self._images = torch.from_numpy(work.images)
        self._preprocess = Preprocess(work, work.shape[1:])

    def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._preprocess(self._images.index_select(0, indices), indices), indices


def stream(work: Work, workers: int) -> Stream:
    loader = DataLoader(
        Batches(work.on_cpu()), sampler=Shuffled(work), batch_size=None, num_workers=workers, pin_memory=work.on_gpu
    )
    return Stream(to_device(loader, work), ahead=2 * workers)
