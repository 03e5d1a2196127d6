"""The engine for a part that fits the device: decoded and equalized images lie there as one uint8 tensor.

A batch is a gather, a bilinear resize or warp, and normalization. On a GPU that is one kernel (`resident_kernel`);
elsewhere batched torch operations, which on a CPU are 2 to 5 times slower than `fused` at 112×112.
"""

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from .pixels import PixelSpec


def preprocess(
    images: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor | None, pixels: PixelSpec
) -> torch.Tensor:
    """images[rows] → a new (N, 1, S, S) tensor of `pixels.dtype`, on the device of all three.

    `images` (n, H, W) uint8 contiguous, already equalized if they are to be; `rows` (N,) int64; `matrices` (N, 2, 3)
    float32 as `affine.matrices` makes them, or None for a plain resize. Nothing is checked: a row outside of `images`
    is undefined on a GPU.
    """
    if images.is_cuda and _has_triton():
        from .resident_kernel import preprocess as one_kernel

        return one_kernel(images, rows, matrices, pixels)
    return batched(images, rows, matrices, pixels)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def batched(
    images: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor | None, pixels: PixelSpec
) -> torch.Tensor:
    """`preprocess` in torch operations."""
    chosen = images[rows, None].float()
    if matrices is None:
        size = (pixels.size, pixels.size)
        drawn = F.interpolate(chosen, size, mode="bilinear") if size != pixels.shape else chosen
    else:
        drawn = F.grid_sample(chosen, _grid(matrices, pixels), padding_mode="zeros", align_corners=False)
    drawn = drawn.mul_(1 / (255 * pixels.std)).add_(-pixels.mean / pixels.std)
    return drawn.to(getattr(torch, pixels.dtype))


def _grid(matrices: torch.Tensor, pixels: PixelSpec) -> torch.Tensor:
    """(N, S, S, 2): where each output pixel comes from, in grid_sample's units: −1 and 1 are the image's outer edges.

    Not by affine_grid: it multiplies matrices, on a GPU in TF32, whose 11 bits move a point by up to 1/100 pixel.
    """
    centres = torch.arange(pixels.size, device=matrices.device) + 0.5
    axes = []
    for row, side in zip(matrices.unbind(1), reversed(pixels.shape), strict=True):
        per_x, per_y, offset = (row * (2 / side))[:, :, None].unbind(1)  # (N, 1) each
        axes.append((per_x * centres + (offset - 1))[:, None, :] + (per_y * centres)[:, :, None])
    return torch.stack(axes, -1)
