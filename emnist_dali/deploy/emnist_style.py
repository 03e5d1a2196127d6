"""Converts a picture of one character to an image in EMNIST's style.

The conversion is the published one (Cohen et al. 2017, "EMNIST: an extension of MNIST to handwritten letters",
arXiv:1702.05373): Gaussian blur, crop to the glyph, square frame with the aspect ratio kept, 2 pixels of border,
bicubic resize to 28×28, intensities stretched to the full range. It is meant for NIST's binary scans; a photograph is
first made to look like one, by removing the paper's brightness, noise and specks.
"""

import numpy as np
from PIL import Image, ImageStat
from scipy import ndimage

SIZE = 28
BORDER = 2
# Longer side in pixels of the picture when the glyph is located, and of the glyph when it is converted, each blurred
# with σ = 1; anything smaller keeps its size and is blurred less.
_SEARCH_SIZE = 256
_GLYPH_SIZE = 96
# Where a glyph ends, as a fraction of full ink: above it, EMNIST's glyphs are 24 pixels long.
_INK_THRESHOLD = 0.05
# Noise is cut off at this many standard deviations; glyphs fainter than this many grey levels are ignored.
_NOISE_SIGMAS = 4
_MIN_CONTRAST = 8


def to_emnist_style(image: Image.Image) -> np.ndarray | None:
    """A picture of one character, of any size → (28, 28) uint8, light on dark; None if there is no ink.

    Dark ink on light paper gives the same as light ink on dark paper. Raises ValueError as `flatten_to_grey`.
    """
    grey = flatten_to_grey(image)
    small = grey.copy()
    small.thumbnail((_SEARCH_SIZE, _SEARCH_SIZE), Image.Resampling.BOX)
    ink = _extract_ink(np.asarray(small, np.float32), max(small.size) / _SEARCH_SIZE)
    if ink is None:
        return None
    box = _bounding_box(ink) * np.tile(np.divide(grey.size, small.size), 2)
    length = (box[2:] - box[:2]).max()
    # With a margin, from which the brightness of the paper is estimated.
    whole = np.array([0, 0, *grey.size], float)
    crop = np.clip(box + 0.2 * length * np.array([-1, -1, 1, 1]), 0, whole[[2, 3, 2, 3]]).round()
    scale = min(1, _GLYPH_SIZE / length)
    size = np.maximum((scale * (crop[2:] - crop[:2])).round(), 1).astype(int)
    resized = grey.resize(tuple(size), Image.Resampling.BICUBIC, box=tuple(crop))
    ink = _extract_ink(np.asarray(resized, np.float32), scale * length / _GLYPH_SIZE)
    return None if ink is None else _frame(ink, (whole - np.tile(crop[:2], 2)) * scale)


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


def _extract_ink(grey: np.ndarray, sigma: float) -> np.ndarray | None:
    """(H, W) from 0 to 255 → fraction of full ink, 0 away from the glyph; None if there is no glyph.

    Edges are blurred to a softness of `sigma` pixels; those of EMNIST's own images are softer and stay as they are.
    """
    grey = ndimage.gaussian_filter(grey, max(0, sigma**2 - _edge_softness(grey) ** 2) ** 0.5, mode="nearest")
    rim = _rim_mask(grey.shape)
    paper = _fit_paper(grey, rim)
    ink = grey - paper
    if (ink**3).sum() < 0:  # dark on light, where dim light darkens ink and paper alike
        ink *= -255 / np.maximum(paper, 1)
    # 1.48 × the median absolute deviation is the standard deviation of normal noise.
    ink -= _NOISE_SIGMAS * 1.48 * np.median(np.abs(ink[rim]))
    if ink.max() < _MIN_CONTRAST:
        return None
    ink = np.clip(ink / np.percentile(ink[ink > ink.max() / 2], 98), 0, 1)
    labels, n = ndimage.label(ink > _INK_THRESHOLD, np.ones((3, 3)))
    peaks = np.array(ndimage.maximum(ink, labels, range(n + 1)))
    masses = np.array(ndimage.sum_labels(ink, labels, range(n + 1)))
    # Removes specks; the dot of a small i has 5 % of the mass or more.
    glyph = ((peaks > 0.5) & (masses > 0.02 * masses.max()))[labels]
    return np.where(ndimage.binary_dilation(glyph, iterations=2), ink, 0)


def _edge_softness(grey: np.ndarray) -> float:
    """σ in pixels of the blur that the steepest edge would have if it went from the darkest to the lightest level."""
    slope = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1]).max(initial=0)
    return np.ptp(grey) / max(slope, 1) / np.sqrt(2 * np.pi)


def _rim_mask(shape: tuple[int, int]) -> np.ndarray:
    """The outer 4 % on each side."""
    rim = np.ones(shape, bool)
    y, x = (max(1, round(0.04 * side)) for side in shape)
    rim[y:-y, x:-x] = False
    return rim


def _fit_paper(grey: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """The brightness of the paper at each pixel: a quadratic surface fitted to the rim."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    deviation = np.abs(grey - np.median(grey[rim]))
    paper = rim & (deviation <= 3 * 1.48 * np.median(deviation[rim]))  # leaves out a glyph that touches the rim
    return terms @ np.linalg.lstsq(terms[paper], grey[paper], rcond=None)[0]


def _bounding_box(ink: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom."""
    rows, columns = (np.flatnonzero((ink > _INK_THRESHOLD).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def _frame(ink: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The glyph in a frame like EMNIST's.

    If `picture` (left, top, right, bottom) is within 1.5 of 28 pixels of that frame, as EMNIST's own images are, it
    becomes the frame.
    """
    box = _bounding_box(ink)
    half = (box[2:] - box[:2]).max() / 2 * SIZE / (SIZE - 2 * BORDER)
    centre = (box[2:] + box[:2]) / 2
    frame = np.concatenate([centre - half, centre + half])
    sides = picture[2:] - picture[:2]
    if sides[0] == sides[1] and np.abs(frame - picture).max() <= 1.5 / SIZE * sides[0]:
        frame = picture
    pad = int(np.ceil(half)) + 1
    padded = Image.fromarray(np.pad(ink, pad).astype(np.float32))
    small = np.asarray(padded.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=tuple(frame + pad)))
    return np.clip(np.rint(255 * small / small.max()), 0, 255).astype(np.uint8)
