"""What every peer is asked for, and the check that it made that."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from emnist_dali.pipelines import affine

_CHECKED_IMAGES = 256


class Batch(NamedTuple):
    """images (B, 1, S, S) float32 or float16, normalized, and their indices (B,) int64 in `Work.images`.

    `matrices` (B, 2, 3) are their warps if those are not `Work.matrices`.
    """

    images: torch.Tensor
    indices: torch.Tensor
    matrices: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """Batches that a peer makes.

    `folder` holds images.npy, (n, H, W) uint8, the first n of the prepared split `shards`. `mean` and `std` are of
    the equalized and resized images, on the scale 0 … 1. With `affine`, a recipe's settings, images are warped.
    `half` asks for float16, on a GPU. A peer's files hold the images `repeats` times: more than once, they are larger
    than memory, and shuffled as the peer does then.
    """

    name: str  # of the peer
    folder: Path
    shards: Path
    size: int
    mean: float
    std: float
    batch_size: int
    device: str
    half: bool
    threads: int
    affine: dict[str, Any] | None
    repeats: int = 1

    @cached_property
    def images(self) -> np.ndarray:
        return np.load(self.folder / "images.npy")

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(n, H, W) of `images`, which are not read for it: many peers have files of their own."""
        return np.load(self.folder / "images.npy", mmap_mode="r").shape

    @cached_property
    def matrices(self) -> np.ndarray | None:
        """(n, 2, 3) float32: a warp for each image, in the convention of `affine.matrices`.

        The same in every epoch, so that the pixels can be checked and drawing takes no peer any time.
        """
        if self.affine is None:
            return None
        samples, *shape = self.shape
        return affine.matrices(np.random.default_rng(0), samples, shape, self.size, **self.affine)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.half else torch.float32

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def on_cpu(self) -> "Work":
        """The same, to be made in a worker, which has no GPU."""
        return replace(self, device="cpu", half=False)

    @property
    def own(self) -> Path:
        """Where the peer writes its files, which it finds again at other sizes and warps."""
        return self.folder / self.name


class Missing(Exception):  # noqa: N818
    """Why a peer cannot run here, and what to do about it."""


@dataclass(frozen=True)
class Stream:
    """An endless stream of shuffled batches.

    `ahead` is how many it has ready when it is idle. `state` gives something that can be pickled, from which the
    module's `stream` goes on with the batch that is next; None where the peer has no such thing. `planned` gives the
    last batch its indices, where finding them takes time and the stream has the images' labels in their place.
    """

    batches: Iterator[Batch]
    ahead: int = 0
    state: Callable[[], Any] | None = None
    planned: Callable[[Batch], Batch] | None = None


def check(batch: Batch, work: Work) -> float:
    """The largest difference from the reference, in grey levels, over the first 256 images of a batch.

    It is at most 1 where a peer rounds to uint8 once more; float16 adds less than half a level.
    """
    from emnist_dali.pipelines.reference import preprocess

    images, indices = (tensor[:_CHECKED_IMAGES].cpu().numpy() for tensor in (batch.images, batch.indices))
    if batch.matrices is not None:
        matrices = batch.matrices[:_CHECKED_IMAGES]
    else:
        matrices = [None] * len(indices) if work.matrices is None else work.matrices[indices]
    expected = [
        preprocess(work.images[i], work.size, work.mean, work.std, matrix)
        for i, matrix in zip(indices, matrices, strict=True)
    ]
    difference = np.abs(images[:, 0].astype(np.float32) - np.stack(expected)) * work.std * 255
    # Rounded, because float32 adds 0.00002 to an exact 1.
    return round(float(np.nan_to_num(difference, nan=np.inf).max()), 3)


class Shuffled:
    """Endless indices (B,) int64 of whole batches, a new permutation every epoch.

    As a DataLoader's `batch_sampler` it has no end of an epoch at which workers would wait.
    """

    def __init__(self, work: Work, device: str = "cpu") -> None:
        self._n, self._batch_size, self._device = work.shape[0], work.batch_size, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(self._n, device=self._device)
            yield from order[: self._n // self._batch_size * self._batch_size].view(-1, self._batch_size)


def to_device(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], work: Work) -> Iterator[Batch]:
    """Batches made on the CPU, on the device; copies to a GPU wait unless the loader has pinned its memory."""
    for images, indices in batches:
        images = images.to(work.device, non_blocking=True)
        yield Batch(images.to(work.dtype), indices.to(work.device, non_blocking=True))


def endless(loader: Iterable) -> Iterator:
    """Epoch after epoch."""
    while True:
        yield from loader
