"""What `fn.equalize` makes of images on a GPU, emulated: its look-up table is not OpenCV's in the last bit."""

import numpy as np


def level(count: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The level of a pixel with `count` of `total` above the lowest level up to its own, float64.

    DALI's arithmetic, `PrepareLookupTable` of equalize/lut.cu: double, halves to even. OpenCV and our kernel
    multiply in float32.
    """
    return np.rint(count * (255.0 / total))


def equalize(images: np.ndarray) -> np.ndarray:
    """Images (n, H, W) uint8 → the same; an image of one level stays as it is."""
    return np.stack([_table(image)[image] for image in images])


def _table(image: np.ndarray) -> np.ndarray:
    sums = np.cumsum(np.bincount(image.ravel(), minlength=256))
    first = sums[image.min()]
    if first == image.size:
        return np.arange(256, dtype=np.uint8)
    return level(np.maximum(sums - first, 0), image.size - first).astype(np.uint8)
