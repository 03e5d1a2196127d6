"""The preprocessing of whole batches in torch, on any device."""

import numpy as np
import torch
from torch.nn import functional

from emnist_dali.pipelines.fused import bilinear_axis

from .work import Work


class Preprocess:
    """(B, H, W) uint8 and indices (B,) → (B, 1, S, S): equalized unless they are, resized or warped, normalized."""

    def __init__(self, work: Work, shape: tuple[int, int], *, equalized: bool = False) -> None:
        self._equalized, self._dtype = equalized, work.dtype
        self._scale, self._shift = 1 / (255 * work.std), -work.mean / work.std
        self._rows, self._columns = (_weights(side, work) for side in shape)
        self._columns = self._columns.T.contiguous()
        self._grid_shape = (work.batch_size, 1, work.size, work.size)
        self._thetas = None if work.matrices is None else _thetas(work, shape)

    def __call__(self, images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if self._equalized:
            levels = images.to(self._dtype)
        else:
            pixels = images.flatten(1).long()
            levels = equalization_tables(pixels).to(self._dtype).gather(1, pixels).view_as(images)
        if self._thetas is None:
            # Normalized before the resize, on fewer pixels; this is equivalent, because the weights sum to 1.
            levels = levels.mul_(self._scale).add_(self._shift)
            return (self._rows @ (levels @ self._columns))[:, None]
        grid = functional.affine_grid(self._thetas[indices], self._grid_shape, align_corners=False)
        warped = functional.grid_sample(levels[:, None], grid, align_corners=False)
        return warped.mul_(self._scale).add_(self._shift)


def equalization_tables(pixels: torch.Tensor) -> torch.Tensor:
    """(n, pixels) int64 → (n, 256) float32: what OpenCV's equalizeHist makes of each grey level of an image.

    The package's `deploy.exportable.equalize` is limited to operations that export, and takes twice as long.
    """
    # bincount would wait for a CUDA device; float32 was slower than int32 on the CPU.
    ones = torch.ones((), dtype=torch.int32, device=pixels.device).expand_as(pixels)
    histogram = torch.zeros(len(pixels), 256, dtype=torch.int32, device=pixels.device).scatter_add_(1, pixels, ones)
    total = pixels.shape[1]
    counts = histogram.cumsum(1, dtype=torch.float32)
    first = counts.masked_fill(counts == 0, total).amin(1, keepdim=True)  # pixels of the lowest level
    # torch computes 255 / … as 255 · (1 / …), which may round to another grey level.
    factor = torch.full_like(first, 255) / (total - first)
    tables = ((counts - first).clamp_(min=0) * factor).round_()
    # OpenCV leaves images of a single grey level unchanged.
    return torch.where(first == total, torch.arange(256.0, device=pixels.device), tables)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """(n, …, H, W) uint8 → the same, equalized."""
    pixels = images.flatten(1).long()
    return equalization_tables(pixels).byte().gather(1, pixels).view_as(images)


def _weights(side: int, work: Work) -> torch.Tensor:
    """Bilinear resize of one axis as a matrix (size, side)."""
    lower, upper, weight = bilinear_axis(side, work.size)
    matrix = np.zeros((work.size, side), np.float32)
    matrix[np.arange(work.size), lower] = 1 - weight
    matrix[np.arange(work.size), upper] += weight
    return torch.from_numpy(matrix).to(work.device, work.dtype)


def _thetas(work: Work, shape: tuple[int, int]) -> torch.Tensor:
    """`Work.matrices` in the convention of `affine_grid`: both images span −1 … 1."""
    matrices = work.matrices.astype(np.float64)
    height, width = shape
    half = work.size / 2
    # Pixels of the output = half · (theta's + 1); theta's of the input = pixels · 2 / side − 1.
    matrices[:, :, 2] += matrices[:, :, :2].sum(2) * half
    matrices[:, :, :2] *= half
    matrices *= 2 / np.array([width, height])[:, None]
    matrices[:, :, 2] -= 1
    return torch.from_numpy(matrices).to(work.device, work.dtype)
