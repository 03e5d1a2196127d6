"""Hugging Face datasets: a map-style dataset with a transform on access, which gets whole batches, in PyTorch's
DataLoader (its documentation, «Use with PyTorch»).

Images are an Array2D column: PNGs would be decoded by PIL one by one.
"""

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .single_images import Preprocess
from .work import Shuffled, Stream, Work, to_device


def write(work: Work, **_: object) -> None:
    height, width = work.shape[1:]
    columns = {"image": datasets.Array2D((height, width), "uint8"), "index": datasets.Value("int64")}
    rows = {"image": work.images, "index": np.arange(len(work.images))}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
    dataset.save_to_disk(str(work.own))


class Rows(Dataset):
    """Batches of rows, one access each."""

    def __init__(self, work: Work) -> None:
        self._rows = datasets.load_from_disk(str(work.own)).with_format("numpy")
        self._preprocess = Preprocess(work)

    def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._rows[indices.tolist()]
        images = map(self._preprocess, rows["image"].astype(np.uint8), rows["index"])
        return torch.from_numpy(np.stack([*images])), torch.from_numpy(rows["index"])


def stream(work: Work, workers: int) -> Stream:
    loader = DataLoader(Rows(work), sampler=Shuffled(work), batch_size=None, num_workers=workers)
    return Stream(to_device(loader, work), ahead=2 * workers)
