"""Images and labels as a file holds them: what each reader of a format gives, before they become a split."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.files import reason
from .idx import MAX_BYTES, MAX_IMAGES, MAX_SIDE

PARTS = ("train", "test", "validation")
MAX_CLASSES = 256  # a label is one byte
# Words of file and array names. The Kuzushiji files say imgs, MNIST's test files t10k, Keras x and y.
PART_WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "t10k": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
KIND_WORDS = ("images", "image", "imgs", "img", "labels", "label", "x", "y")


@dataclass(frozen=True)
class Stored:
    """Images (N, H, W) uint8 and labels (N,) integers, each with its place for messages."""

    images: np.ndarray
    images_at: str
    labels: np.ndarray
    labels_at: str

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise UserError(
                f"{self.images_at} holds {len(self.images):,} images, but {self.labels_at} holds "
                f"{len(self.labels):,} labels; use two that belong together."
            )


@contextmanager
def read_as(kind: str, path: Path) -> Iterator[None]:
    """Turns what a library raises on a broken file of this kind into a UserError."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than this machine has free; close other programs.") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read as {kind} ({reason(error)}); download or save it again.") from error


def words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def part_of(name: str) -> str | None:
    """train, test or validation, if a file or an array is named so; the last word that says it counts."""
    return next((PART_WORDS[word] for word in reversed(words(name)) if word in PART_WORDS), None)


def check_size(shape: tuple[int, ...], at: str) -> None:
    """Raises UserError for images of `shape` beyond the limits of idx files, before memory is taken for them."""
    count, *sides = shape
    in_bounds = 1 <= count <= MAX_IMAGES and all(1 <= side <= MAX_SIDE for side in sides)
    if not in_bounds or math.prod(shape) > MAX_BYTES:
        raise UserError(
            f"{at} holds {' × '.join(f'{side:,}' for side in shape)} bytes of images, but 1 to {MAX_IMAGES:,} "
            f"images, sides of up to {MAX_SIDE:,} and {MAX_BYTES // 2**20} MiB are supported; make a smaller file."
        )


def to_grey(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) → (N, H, W) uint8, by the weights that Pillow gives red, green and blue."""
    grey = np.empty(images.shape[:3], np.uint8)
    for start in range(0, len(images), 1024):  # the sums take four times as much memory
        red, green, blue = np.moveaxis(images[start : start + 1024].astype(np.uint32), -1, 0)
        grey[start : start + 1024] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return grey
