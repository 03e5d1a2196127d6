"""Augmentations of whole batches on their device, drawn on the host: erasing and elastic distortion.

Affine warps are not here: the pipeline draws them in the place of its resize.
"""

import numpy as np
import torch
from torch.nn import functional

from ..config import Training
from ..data.stats import Stats
from ..loading import sampling

# Of the image's area, and height over width: Zhong et al. 2017, arXiv:1708.04896.
ERASED, ASPECT = (0.02, 0.33), (0.3, 3.3)
# Displacements are drawn on a grid of so many points a side; between them they are interpolated.
GRID = 4


def distorted(
    images: torch.Tensor, training: Training, epoch: int, batch: int, batch_size: int, own: slice | np.ndarray
) -> torch.Tensor:
    """`images`, which are the places `own` of a batch of all ranks, distorted as the recipe says.

    Drawn for the whole batch: an image's augmentation does not depend on the number of ranks.
    """
    generator = sampling.generator(training.seed, sampling.Stream.ELASTIC, epoch, batch)
    drawn = displacements(generator, batch_size, training.elastic)[own]
    return elastic(images, torch.from_numpy(drawn).to(images.device, non_blocking=True))


def erased(
    images: torch.Tensor,
    training: Training,
    stats: Stats,
    epoch: int,
    batch: int,
    batch_size: int,
    own: slice | np.ndarray,
) -> torch.Tensor:
    """The same for erasing, to the background of images normalized by `stats`."""
    generator = sampling.generator(training.seed, sampling.Stream.ERASING, epoch, batch)
    drawn = boxes(generator, batch_size, images.shape[-1], training.erasing)[own]
    return erase(images, torch.from_numpy(drawn).to(images.device, non_blocking=True), -stats.mean / stats.std)


def boxes(generator: np.random.Generator, samples: int, size: int, probability: float) -> np.ndarray:
    """(samples, 4) int64: top, bottom, left, right of what is erased of each image; nothing where they are equal."""
    area = generator.uniform(*ERASED, samples) * size**2
    aspect = np.exp(generator.uniform(*np.log(ASPECT), samples))
    sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)]).round().clip(1, size)
    sides *= generator.random(samples) < probability
    starts = np.floor(generator.random((2, samples)) * (size - sides + 1))
    return np.stack([starts[0], starts[0] + sides[0], starts[1], starts[1] + sides[1]], axis=-1).astype(np.int64)


def erase(images: torch.Tensor, boxes: torch.Tensor, background: float) -> torch.Tensor:
    """images (N, 1, S, S) with `background` in each image's box, (N, 4)."""
    place = torch.arange(images.shape[-1], device=images.device)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = (place >= top) & (place < bottom), (place >= left) & (place < right)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], background)


def displacements(generator: np.random.Generator, samples: int, deviation: float) -> np.ndarray:
    """(samples, 2, GRID, GRID) float32: x and y, in pixels."""
    return generator.normal(0, deviation, (samples, 2, GRID, GRID)).astype(np.float32)


def elastic(images: torch.Tensor, displacements: torch.Tensor) -> torch.Tensor:
    """images (N, 1, S, S), each sampled where its smooth displacements (N, 2, G, G) lead; borders repeat.

    Simard, Steinkraus & Platt 2003, «Best practices for convolutional neural networks».
    """
    side = images.shape[-1]
    smooth = functional.interpolate(displacements, size=side, mode="bicubic", align_corners=True)
    place = (torch.arange(side, device=images.device, dtype=torch.float32) + 0.5) * 2 / side - 1
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1) + smooth.permute(0, 2, 3, 1) * 2 / side
    return functional.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)
