"""What a pixel of a batch is: the settings that every engine shares."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """Turns stored images (H, W) uint8 into (1, size, size) images of `dtype`.

    `mean` and `std` are of the train split after equalization and resize, on the scale 0 … 1. With `equalize` False
    the grey levels stay as they are.
    """

    shape: tuple[int, int]  # (H, W)
    size: int  # pixels
    mean: float
    std: float
    equalize: bool = True
    dtype: Literal["float32", "float16"] = "float32"
