"""The batch of `resident` as one Triton kernel. Importing it needs triton."""

import torch
import triton
import triton.language as tl

from .pixels import PixelSpec

# Output pixels of one program, 8 for each thread of 4 warps. Not tuned.
BLOCK = 1024


@triton.jit
def _pixel(image, x, y, height: tl.constexpr, width: tl.constexpr):
    """The pixels at columns x and rows y of an image, 0 outside."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return tl.load(image + y * width + x, mask=inside, other=0).to(tl.float32)


# Slices of a plan begin anywhere: for another alignment the kernel would be compiled anew in the middle of an epoch.
@triton.jit(do_not_specialize_on_alignment=["rows", "matrices"])
def make_batch(
    images, rows, matrices, out, scale, shift,
    height: tl.constexpr, width: tl.constexpr, size: tl.constexpr, warped: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Program (i, k) makes the k-th block of pixels of out[i] from images[rows[i]]."""
    i = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    # Coordinates count from the corner of the first pixel: half a pixel to its centre, and back.
    u, v = (pixel % size).to(tl.float32) + 0.5, (pixel // size).to(tl.float32) + 0.5
    if warped:
        matrix = matrices + i * 6
        x = tl.load(matrix) * u + tl.load(matrix + 1) * v + tl.load(matrix + 2) - 0.5
        y = tl.load(matrix + 3) * u + tl.load(matrix + 4) * v + tl.load(matrix + 5) - 0.5
        # From one pixel outside on, everything is 0.
        x = tl.clamp(x, -1.0, width)
        y = tl.clamp(y, -1.0, height)
    else:
        # The border is replicated: at the last pixel's centre its neighbour, which is outside, has weight 0.
        x = tl.clamp(u * (width / size) - 0.5, 0.0, width - 1)
        y = tl.clamp(v * (height / size) - 0.5, 0.0, height - 1)
    left, top = tl.floor(x), tl.floor(y)
    wx, wy = x - left, y - top
    left, top = left.to(tl.int32), top.to(tl.int32)
    image = images + tl.load(rows + i) * (height * width)
    upper, upper_right = _pixel(image, left, top, height, width), _pixel(image, left + 1, top, height, width)
    lower, lower_right = _pixel(image, left, top + 1, height, width), _pixel(image, left + 1, top + 1, height, width)
    upper += wx * (upper_right - upper)
    lower += wx * (lower_right - lower)
    drawn = (upper + wy * (lower - upper)) * scale + shift
    tl.store(out + i * (size * size) + pixel, drawn.to(out.dtype.element_ty), mask=pixel < size * size)


def preprocess(
    images: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor | None, pixels: PixelSpec
) -> torch.Tensor:
    """`resident.preprocess`, on the current stream of the tensors' GPU."""
    n, size = len(rows), pixels.size
    out = torch.empty((n, 1, size, size), dtype=getattr(torch, pixels.dtype), device=images.device)
    with torch.cuda.device_of(images):
        make_batch[n, triton.cdiv(size**2, BLOCK)](
            images,
            rows,
            rows if matrices is None else matrices,  # without a warp it is not read
            out,
            1 / (255 * pixels.std),
            -pixels.mean / pixels.std,
            *pixels.shape,
            size,
            warped=matrices is not None,
            block=BLOCK,
        )
    return out
