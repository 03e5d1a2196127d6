"""PyTorch's DataLoader over single images: a dataset that preprocesses in `__getitem__`, as in most projects.

4 batches a worker in advance, instead of its 2, were no faster.
"""

import torch
from torch.utils.data import DataLoader, Dataset

from .single_images import Preprocess
from .work import Shuffled, Stream, Work, to_device


class Images(Dataset):
    def __init__(self, work: Work) -> None:
        self._images, self._preprocess = work.images, Preprocess(work)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self._preprocess(self._images[index], index)), index


def stream(work: Work, workers: int) -> Stream:
    loader = DataLoader(
        Images(work),
        batch_sampler=(indices.tolist() for indices in Shuffled(work)),
        num_workers=workers,
        pin_memory=work.on_gpu,
    )
    return Stream(to_device(loader, work), ahead=2 * workers)
