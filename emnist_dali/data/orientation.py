"""Whether characters are stored upright or transposed: told by their strokes, beside those of drawn ones.

The mean images of the classes are compared with those of drawn glyphs, both without what all classes share. On real
EMNIST, at 100 images a class, their correlation is 0.36 (digits) to 0.53 (letters) upright and 0.12 to 0.16
transposed; with permuted labels, other characters or noise it stays below 0.12. A pair such as 0 and O tells nothing.
"""

from functools import cache

import numpy as np
from PIL import Image

from .glyphs import CHARACTERS, SIZE, draw

IMAGES = 100  # of each class
LOWEST, MARGIN = 0.25, 0.1  # the correlation that is believed, and its lead over the other


def by_strokes(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> str | None:
    """How `images` (N, H, W) uint8 with `labels` (N,) into `classes` are stored; None where nothing tells.

    Nothing tells where the classes are not single characters of 0-9, A-Z and a-z, or the images are not square.
    """
    present = [label for label in np.unique(labels).tolist() if len(classes[label]) == 1]
    if len(present) < len(classes) or images.shape[1] != images.shape[2] or not set(classes) <= set(CHARACTERS):
        return None
    means = np.stack([_small(images[np.flatnonzero(labels == label)[:IMAGES]].mean(0)) for label in present])
    drawn = np.stack([_drawn(classes[label]) for label in present])
    upright, transposed = (_correlation(means.transpose(axes), drawn) for axes in ((0, 1, 2), (0, 2, 1)))
    if max(upright, transposed) < LOWEST or abs(upright - transposed) < MARGIN:
        return None
    return "upright" if upright > transposed else "transposed"


def _small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BOX))


@cache
def _drawn(character: str) -> np.ndarray:
    """The mean of some glyphs, (SIZE, SIZE) float64."""
    images, _ = draw(character, per_class=12, test_per_class=1)["train"]
    return images.mean(0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two stacks of images, each without its mean image; 0 for one that has nothing else."""
    a, b = ((stack - stack.mean(0)).ravel().astype(np.float64) for stack in (a, b))
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths else 0.0
