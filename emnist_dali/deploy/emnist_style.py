"""A picture of one character as EMNIST would hold it.

The conversion is the published one (Cohen et al. 2017, «EMNIST: an extension of MNIST to handwritten letters»,
arXiv:1702.05373): Gaussian blur, crop to the glyph, square frame with aspect ratio kept, 2 pixels of border, bicubic
to 28×28, intensities stretched to the full range. It starts from NIST's binary scans; here a photograph is first
brought near to one: the paper's brightness is taken off, with its noise and specks.
"""

import numpy as np
from PIL import Image, ImageStat
from scipy import ndimage

SIZE = 28
BORDER = 2
# Longer side in pixels of the picture in which the glyph is looked for, and of the glyph when it is converted, both
# blurred with σ = 1; what is smaller stays as it is and is blurred less.
_SEARCH = 256
_GLYPH = 96
# What counts as ink at the glyph's ends, as a share of full ink: EMNIST's glyphs are 24 pixels long above it.
_FRINGE = 0.05
# Paper's noise is cut off at this many standard deviations; a fainter glyph than this many grey levels is none.
_NOISE = 4
_FAINTEST = 8


def convert(image: Image.Image) -> np.ndarray | None:
    """A picture of one character, of any size and any mode that `flatten` takes → (28, 28) uint8, light on dark.

    Dark ink on light paper and the reverse give the same. None where there is no ink on even paper.
    """
    grey = flatten(image)
    whole = np.array([0, 0, *grey.size], float)
    small = grey.copy()
    small.thumbnail((_SEARCH, _SEARCH), Image.Resampling.BOX)
    ink = _ink(np.asarray(small, np.float32), max(small.size) / _SEARCH)
    if ink is None:
        return None
    box = _box(ink) * np.tile(np.divide(grey.size, small.size), 2)
    length = (box[2:] - box[:2]).max()
    # The paper around the glyph is needed to tell its brightness.
    place = np.clip(box + 0.2 * length * np.array([-1, -1, 1, 1]), 0, whole[[2, 3, 2, 3]]).round()
    scale = min(1, _GLYPH / length)
    size = np.maximum((scale * (place[2:] - place[:2])).round(), 1).astype(int)
    close = grey.resize(tuple(size), Image.Resampling.BICUBIC, box=tuple(place))
    ink = _ink(np.asarray(close, np.float32), scale * length / _GLYPH)
    return None if ink is None else _framed(ink, (whole - np.tile(place[:2], 2)) * scale)


def flatten(image: Image.Image) -> Image.Image:
    """In mode L; what is transparent becomes black or white, whichever is farther from the rest.

    ValueError for a mode that has no grey, as LAB.
    """
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("L")
    image = image.convert("RGBA")
    drawn = ImageStat.Stat(image.convert("L"), mask=image.getchannel("A"))
    paper = "white" if drawn.count[0] and drawn.mean[0] < 127.5 else "black"
    return Image.alpha_composite(Image.new("RGBA", image.size, paper), image).convert("L")


def _ink(grey: np.ndarray, sigma: float) -> np.ndarray | None:
    """(H, W) of 0 to 255 → share of full ink, 0 where no part of the glyph is near; None where there is no glyph.

    It is blurred to edges of `sigma` pixels, and not at all where they are softer already, as EMNIST's own.
    """
    grey = ndimage.gaussian_filter(grey, max(0, sigma**2 - _softness(grey) ** 2) ** 0.5, mode="nearest")
    rim = _rim(grey.shape)
    paper = _paper(grey, rim)
    ink = grey - paper
    if (ink**3).sum() < 0:  # dark on light, where less light falls on both alike
        ink *= -255 / np.maximum(paper, 1)
    # 1.48 times the median makes the standard deviation of normal noise.
    ink -= _NOISE * 1.48 * np.median(np.abs(ink[rim]))
    if ink.max() < _FAINTEST:
        return None
    ink = np.clip(ink / np.percentile(ink[ink > ink.max() / 2], 98), 0, 1)
    parts, n = ndimage.label(ink > _FRINGE, np.ones((3, 3)))
    peaks, masses = (np.array(of(ink, parts, range(n + 1))) for of in (ndimage.maximum, ndimage.sum_labels))
    # Specks go; the dot of a small i has 5 % or more.
    glyph = ((peaks > 0.5) & (masses > 0.02 * masses.max()))[parts]
    return np.where(ndimage.binary_dilation(glyph, iterations=2), ink, 0)


def _softness(grey: np.ndarray) -> float:
    """σ in pixels of the blur that the steepest edge would have, if it went from the darkest to the lightest."""
    slope = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1]).max(initial=0)
    return np.ptp(grey) / max(slope, 1) / np.sqrt(2 * np.pi)


def _rim(shape: tuple[int, int]) -> np.ndarray:
    rim = np.ones(shape, bool)
    y, x = (max(1, round(0.04 * side)) for side in shape)
    rim[y:-y, x:-x] = False
    return rim


def _paper(grey: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """The paper's brightness everywhere: a quadratic surface through most of the rim."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    off = np.abs(grey - np.median(grey[rim]))
    paper = rim & (off <= 3 * 1.48 * np.median(off[rim]))  # not where the glyph touches the rim
    return terms @ np.linalg.lstsq(terms[paper], grey[paper], rcond=None)[0]


def _box(ink: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom."""
    rows, columns = (np.flatnonzero((ink > _FRINGE).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def _framed(ink: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The glyph in its frame. A `picture` (left, top, right, bottom) that is such a frame but for 1.5 pixels of 28
    stays whole, as EMNIST's own."""
    box = _box(ink)
    half = (box[2:] - box[:2]).max() / 2 * SIZE / (SIZE - 2 * BORDER)
    centre = (box[2:] + box[:2]) / 2
    frame = np.concatenate([centre - half, centre + half])
    sides = picture[2:] - picture[:2]
    if sides[0] == sides[1] and np.abs(frame - picture).max() <= 1.5 / SIZE * sides[0]:
        frame = picture
    pad = int(np.ceil(half)) + 1
    wide = Image.fromarray(np.pad(ink, pad).astype(np.float32))
    small = np.asarray(wide.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=tuple(frame + pad)))
    return np.clip(np.rint(255 * small / small.max()), 0, 255).astype(np.uint8)
