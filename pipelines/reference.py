"""The mathematics of the pipeline in its plainest form: what both engines are tested against.

Needs OpenCV (the `dev` extra). The warp is numpy: OpenCV 4's `warpAffine` is up to 4.7 grey levels off exact
bilinear interpolation, 5.0's 0.5.
"""

import cv2
import numpy as np


def preprocess(
    image: np.ndarray,
    size: int,
    mean: float,
    std: float,
    matrix: np.ndarray | None = None,
    equalize: bool = True,
) -> np.ndarray:
    """(H, W) uint8 → (size, size) float32: equalize, then resize or warp, then normalize.

    `matrix` (2, 3) is one of `affine.matrices`; `mean` and `std` are on the scale 0 … 1.
    """
    image = np.ascontiguousarray(image)
    equalized = (cv2.equalizeHist(image) if equalize else image).astype(np.float32)
    if matrix is None:
        resized = cv2.resize(equalized, (size, size), interpolation=cv2.INTER_LINEAR)
    else:
        resized = warp(equalized, size, matrix)
    return ((resized / 255 - mean) / std).astype(np.float32)


def warp(image: np.ndarray, size: int, matrix: np.ndarray) -> np.ndarray:
    """(H, W) → (size, size) float64, bilinear through `matrix`, zero outside."""
    height, width = image.shape
    centres = np.arange(size) + 0.5
    x, y = (row[0] * centres[None, :] + row[1] * centres[:, None] + row[2] - 0.5 for row in matrix.astype(np.float64))
    x, y = np.clip(x, -1, width), np.clip(y, -1, height)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    wx, wy = x - left, y - top
    # One pixel of background before the image and two after: no coordinate needs a test for the border.
    padded = np.pad(image.astype(np.float64), ((1, 2), (1, 2)))
    left, top = left + 1, top + 1
    upper = padded[top, left] * (1 - wx) + padded[top, left + 1] * wx
    lower = padded[top + 1, left] * (1 - wx) + padded[top + 1, left + 1] * wx
    return upper * (1 - wy) + lower * wy
