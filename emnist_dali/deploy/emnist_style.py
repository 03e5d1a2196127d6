"""Converts a picture of one character to an image in EMNIST's style.

The conversion is the published one (Cohen et al. 2017, "EMNIST: an extension of MNIST to handwritten letters",
arXiv:1702.05373): Gaussian blur, crop to the glyph, square frame with the aspect ratio kept, 2 pixels of border,
bicubic resize to 28×28, intensities stretched to the full range. It is meant for NIST's binary scans; a photograph is
first made to look like one: `ink.py` removes light, shadows, noise and ruled lines, this file specks.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageStat
from scipy import ndimage

from .ink import extract_ink, softened, without_rules
from .segment import pieces_of, stacked

SIZE = 28
BORDER = 2
SEVERAL = "it shows several characters"  # a warning
# Longer side in pixels of the picture when the glyph is located, and of the glyph when it is converted, each blurred
# with σ = 1; anything smaller keeps its size and is blurred less.
_SEARCH_SIZE = 256
_GLYPH_SIZE = 96
# σ for glyphs cut out of a page, which are never EMNIST's own soft images: the built-in model reads 1.5 points more
# of re-inked glyphs than at 1.
_CUT_OUT_SIGMA = 2.2
# Where a glyph ends, as a fraction of full ink: above it, EMNIST's glyphs are 24 pixels long.
_INK_THRESHOLD = 0.05
# Of the longest part of a picture: what is shorter is no character of its own, and closer parts are one. Measured on
# re-inked EMNIST images: 180 of 180 rows of 2 to 5 characters get the warning, and none of 400 single ones and of
# 1,000 of the images themselves.
_WHOLE, _APART = 0.5, 0.05
# Strokes are darker; lighter edges reach at most _EDGE pixels further.
_STROKE_THRESHOLD = 0.25
_EDGE = 5


class Glyph(NamedTuple):
    """(28, 28) uint8, light on dark; and why it may not be what the picture shows, in a sentence, or None."""

    image: np.ndarray
    warning: str | None


def to_emnist_style(image: Image.Image) -> np.ndarray | None:
    """A picture of one character, of any size → (28, 28) uint8, light on dark; None if there is no ink.

    Dark ink on light paper gives the same as light ink on dark paper. Raises ValueError as `flatten_to_grey`.
    """
    glyph = find_glyph(image)
    return None if glyph is None else glyph.image


def find_glyph(image: Image.Image) -> Glyph | None:
    """`to_emnist_style`, with a warning where the picture shows more than a character, or less."""
    grey = flatten_to_grey(image)
    small = grey.copy()
    small.thumbnail((_SEARCH_SIZE, _SEARCH_SIZE), Image.Resampling.BOX)
    # Wider than strokes, and narrower than the paper that a shadow or a desk leaves.
    reach = max(3, min(small.size) // 2)
    ink = extract_ink(np.asarray(small, np.float32), max(small.size) / _SEARCH_SIZE, reach)
    if ink is None:
        return None
    unruled = without_rules(ink, _rule_thickness(small.size)) if max(small.size) > 2 * SIZE else ink
    ruled = not np.array_equal(unruled, ink)
    glyph = _only_glyph(unruled)
    if glyph is None:
        return None
    warning = _warning(glyph)
    box = _bounding_box(glyph) * np.tile(np.divide(grey.size, small.size), 2)
    length = (box[2:] - box[:2]).max()
    # With a margin, from which the brightness of the paper is estimated, or in which lines are seen.
    whole = np.array([0, 0, *grey.size], float)
    outwards = length * np.array([-1, -1, 1, 1])
    crop, near = (
        np.clip(box + margin * outwards, 0, whole[[2, 3, 2, 3]]).round() for margin in (1 if ruled else 0.2, 0.2)
    )
    scale = min(1, _GLYPH_SIZE / length)
    size = np.maximum((scale * (crop[2:] - crop[:2])).round(), 1).astype(int)
    resized = grey.resize(tuple(size), Image.Resampling.BICUBIC, box=tuple(crop))
    ink = extract_ink(np.asarray(resized, np.float32), scale * length / _GLYPH_SIZE)
    if ink is not None and ruled:
        left, top, right, bottom = ((near - np.tile(crop[:2], 2)) * scale).round().astype(int)
        ink = without_rules(ink, _rule_thickness(size))[top:bottom, left:right]
    glyph = None if ink is None else _only_glyph(ink)
    if glyph is None:
        return None
    return Glyph(_frame(glyph, (whole - np.tile(near[:2], 2)) * scale), warning)


def _warning(ink: np.ndarray) -> str | None:
    groups = stacked(pieces_of(ink))
    longest = max((group.length for group in groups), default=0)
    large = [group for group in groups if group.length > _WHOLE * longest]
    if any(after.left - before.right > _APART * longest for before, after in pairwise(large)):
        return SEVERAL
    strokes = ink > 0.5
    if max(strokes[[0, -1]].max(), strokes[:, [0, -1]].max()):
        return "its ink reaches the edge of the picture; leave a margin"
    return None


def _rule_thickness(size: Sequence[int]) -> int:
    return max(2, round(0.03 * max(size)))


def flatten_to_grey(image: Image.Image) -> Image.Image:
    """In mode L; transparent pixels become black or white, whichever contrasts more with the rest.

    Raises ValueError for modes that cannot be converted to grey, such as LAB.
    """
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("L")
    image = image.convert("RGBA")
    opaque = ImageStat.Stat(image.convert("L"), mask=image.getchannel("A"))
    background = "white" if opaque.count[0] and opaque.mean[0] < 127.5 else "black"
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("L")


def _only_glyph(ink: np.ndarray) -> np.ndarray | None:
    """(H, W) `ink` without specks and what reaches in from the rim; None if nothing is left."""
    labels, n = ndimage.label(ink > _STROKE_THRESHOLD, np.ones((3, 3)))
    peaks = np.array(ndimage.maximum(ink, labels, range(n + 1)))
    masses = np.array(ndimage.sum_labels(ink, labels, range(n + 1)))
    masses[0] = 0
    cut = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    whole = np.delete(masses, cut).max(initial=0)
    if whole > 0.1 * masses.max():
        masses[cut] = 0
    # Removes specks; the dot of a small i has 5 % of the mass or more.
    glyph = ((peaks > 0.5) & (masses > 0.02 * masses.max()))[labels]
    # A soft edge is at most so wide; a ruled line that was not quite removed is longer.
    edges = ndimage.binary_dilation(glyph, iterations=_EDGE, mask=glyph | (ink > _INK_THRESHOLD))
    return np.where(ndimage.binary_dilation(edges, iterations=2), ink, 0) if glyph.any() else None


def _bounding_box(ink: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom."""
    rows, columns = (np.flatnonzero((ink > _INK_THRESHOLD).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def framed(ink: np.ndarray) -> np.ndarray:
    """(H, W) ink from 0 to 1 of one character, anywhere in it → (28, 28) uint8 as `to_emnist_style` returns."""
    length = (_bounding_box(ink)[[2, 3]] - _bounding_box(ink)[[0, 1]]).max()
    ink = softened(np.pad(ink, 4 + round(length / 12)), _CUT_OUT_SIGMA * length / _GLYPH_SIZE)
    return _frame(ink / ink.max())


def _frame(ink: np.ndarray, picture: np.ndarray | None = None) -> np.ndarray:
    """The glyph in a frame like EMNIST's.

    If `picture` (left, top, right, bottom) is within 1.5 of 28 pixels of that frame, as EMNIST's own images are, it
    becomes the frame.
    """
    box = _bounding_box(ink)
    half = (box[2:] - box[:2]).max() / 2 * SIZE / (SIZE - 2 * BORDER)
    centre = (box[2:] + box[:2]) / 2
    frame = np.concatenate([centre - half, centre + half])
    if picture is not None:
        sides = picture[2:] - picture[:2]
        if sides[0] == sides[1] and np.abs(frame - picture).max() <= 1.5 / SIZE * sides[0]:
            frame = picture
    pad = int(np.ceil(half)) + 1
    padded = Image.fromarray(np.pad(ink, pad).astype(np.float32))
    small = np.asarray(padded.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=tuple(frame + pad)))
    return np.clip(np.rint(255 * small / small.max()), 0, 255).astype(np.uint8)
