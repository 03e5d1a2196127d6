"""Corrupted images: the conditions of `robustness`, each at three severities.

After MNIST-C (Mu & Gilmer 2019, arXiv:1906.02337) and ImageNet-C (Hendrycks & Dietterich 2019, arXiv:1903.12261); the
strokes after Morpho-MNIST (Castro et al. 2018, arXiv:1809.10780). They act on stored images (N, H, W) uint8, before
the pipeline. Lengths are in pixels of a side of 28 and grow with the shorter side. Strokes may be light on dark or
dark on light: each image is what its rim says.
"""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from ..loading import sampling

SEVERITIES = (1, 2, 3)
SIDE = 28  # pixels
_SEED = 0

Generators = Sequence[np.random.Generator]  # one an image


class Condition(NamedTuple):
    """`corrupt` takes images and an amount, and Generators where it is `random`; `amounts` are of the severities."""

    corrupt: Callable[..., np.ndarray]
    amounts: tuple[float, float, float]
    unit: str  # what an amount is
    random: bool = False


def corrupted(images: np.ndarray, condition: str, severity: int, indices: np.ndarray) -> np.ndarray:
    """A corrupted copy of images (N, H, W) uint8, whose `indices` (N,) in their part key all that is drawn.

    An image is corrupted alike in any batch, and what is drawn for it is the same at each severity.
    """
    corrupt, amounts, _, random = CONDITIONS[condition]
    amount = amounts[severity - 1]
    if not random:
        return corrupt(images, amount)
    return corrupt(images, amount, [sampling.generator(_SEED, sampling.Stream.CORRUPTION, batch=i) for i in indices])


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur."""
    pixels = sigma * _scale(images)
    return _to_uint8(ndimage.gaussian_filter(images.astype(np.float32), (0, pixels, pixels), mode="nearest"))


def noise(images: np.ndarray, sigma: float, generators: Generators) -> np.ndarray:
    """Gaussian noise, independent in each pixel; `sigma` is a share of the range from black to white."""
    drawn = np.stack([generator.standard_normal(images.shape[1:], np.float32) for generator in generators])
    return _to_uint8(images + 255 * sigma * drawn)


def thin_strokes(images: np.ndarray, radius: float) -> np.ndarray:
    """The strokes lose `radius` on each side."""
    flip = _dark_strokes(images) ^ 255
    return _dilated(images ^ flip, radius) ^ flip


def thick_strokes(images: np.ndarray, radius: float) -> np.ndarray:
    """The strokes gain `radius` on each side."""
    flip = _dark_strokes(images)
    return _dilated(images ^ flip, radius) ^ flip


def rotation(images: np.ndarray, degrees: float, generators: Generators) -> np.ndarray:
    """Rotated about the centre, one way or the other."""
    clockwise = np.array([generator.random() < 0.5 for generator in generators])
    background = _background(images)
    rotated = images.astype(np.float32) - background
    for chosen, angle in ((clockwise, -degrees), (~clockwise, degrees)):
        rotated[chosen] = ndimage.rotate(
            rotated[chosen], angle, axes=(2, 1), reshape=False, order=1, mode="grid-constant"
        )
    return _to_uint8(rotated + background)


def shift(images: np.ndarray, distance: float, generators: Generators) -> np.ndarray:
    """Shifted by whole pixels in any direction; what leaves the image is lost."""
    n, height, width = images.shape
    angles = 2 * np.pi * np.array([generator.random() for generator in generators])
    down, right = np.rint(distance * _scale(images) * np.array([np.sin(angles), np.cos(angles)])).astype(int)
    y, x = np.arange(height) - down[:, None], np.arange(width) - right[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    moved = images[np.arange(n)[:, None, None], y.clip(0, height - 1)[:, :, None], x.clip(0, width - 1)[:, None, :]]
    return np.where(inside, moved, _background(images))


def contrast(images: np.ndarray, share: float) -> np.ndarray:
    """The `share` of each image's contrast about its mean."""
    mean = images.mean((1, 2), dtype=np.float32, keepdims=True)
    return _to_uint8((images - mean) * share + mean)


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Compressed by libjpeg at a quality of 1 to 95."""
    return np.stack([_compressed(image, quality) for image in images])


def occlusion(images: np.ndarray, side: float, generators: Generators) -> np.ndarray:
    """A square of the background somewhere over the image."""
    _, height, width = images.shape
    pixels = round(side * _scale(images))
    drawn = np.array([generator.random(2) for generator in generators])
    top, left = np.floor(drawn * (height - pixels + 1, width - pixels + 1)).astype(int).T[:, :, None]
    y, x = np.arange(height), np.arange(width)
    rows, columns = (y >= top) & (y < top + pixels), (x >= left) & (x < left + pixels)
    return np.where(rows[:, :, None] & columns[:, None, :], _background(images), images)


# Noise, contrast and JPEG have ImageNet-C's severities 1, 3 and 5; the others were chosen by eye on Balanced, so that
# most characters are still read at the third.
CONDITIONS = {
    "blur": Condition(blur, (0.8, 1.4, 2.0), "σ in pixels"),
    "noise": Condition(noise, (0.08, 0.18, 0.38), "σ as a share of white", random=True),
    "thin strokes": Condition(thin_strokes, (0.3, 0.6, 0.9), "pixels a side"),
    "thick strokes": Condition(thick_strokes, (0.7, 1.3, 2.0), "pixels a side"),
    "rotation": Condition(rotation, (10, 20, 30), "degrees", random=True),
    "shift": Condition(shift, (2, 4, 6), "pixels", random=True),
    "contrast": Condition(contrast, (0.4, 0.2, 0.05), "share left"),
    "JPEG": Condition(jpeg, (25, 15, 7), "quality"),
    "occlusion": Condition(occlusion, (4, 7, 10), "side in pixels", random=True),
}


def _scale(images: np.ndarray) -> float:
    """Pixels of the images for one of SIDE."""
    return min(images.shape[1:]) / SIDE


def _to_uint8(images: np.ndarray) -> np.ndarray:
    return np.rint(images).clip(0, 255).astype(np.uint8)


def _background(images: np.ndarray) -> np.ndarray:
    """(N, 1, 1) uint8: the median of each image's outermost pixels."""
    rim = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    return np.median(rim, 1).astype(np.uint8)[:, None, None]


def _dark_strokes(images: np.ndarray) -> np.ndarray:
    """(N, 1, 1) uint8: 255 where an image is darker than its background, otherwise 0."""
    darker = images.mean((1, 2), keepdims=True) < _background(images)
    return np.where(darker, np.uint8(255), np.uint8(0))


def _dilated(images: np.ndarray, radius: float) -> np.ndarray:
    """What is light grows by `radius`; between whole pixels it is interpolated."""
    pixels = radius * _scale(images)
    whole = int(pixels)
    # Squares, because their filter takes as long for a large one.
    low, high = (ndimage.maximum_filter(images, (1, side, side)) for side in (2 * whole + 1, 2 * whole + 3))
    return _to_uint8(low + (pixels - whole) * (high - low).astype(np.float32))


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
