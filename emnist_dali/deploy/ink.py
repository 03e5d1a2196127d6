"""Tells ink from paper in a grey picture: light, shadows, desks, noise and ruled lines are taken out."""

import numpy as np
from scipy import ndimage

# Noise is cut off at this many standard deviations; ink fainter than this many grey levels is ignored.
_NOISE_SIGMAS = 4
_MIN_CONTRAST = 16
# Of full ink: what is fainter is no line.
_FAINTEST_RULE = 0.1


def extract_ink(grey: np.ndarray, sigma: float, reach: int | None = None) -> np.ndarray | None:
    """(H, W) from 0 to 255 → ink from 0 to 1, of either polarity; None if there is none.

    Edges are blurred to a softness of `sigma` pixels; those of EMNIST's own images are softer and stay as they are.
    Whatever holds a square of `reach` pixels, by default nearly as large as the picture, is no ink.
    """
    grey = softened(grey, sigma)
    ink = _contrast_with_paper(grey, reach or max(3, round(0.9 * min(grey.shape))))
    rim = _rim_mask(grey.shape)
    ink -= _fit_rim(ink, rim)
    # 1.48 × the median absolute deviation is the standard deviation of normal noise.
    ink -= _NOISE_SIGMAS * 1.48 * np.median(np.abs(ink[rim]))
    if ink.max() < _MIN_CONTRAST:
        return None
    return np.clip(ink / np.percentile(ink[ink > ink.max() / 2], 98), 0, 1)


def _contrast_with_paper(grey: np.ndarray, side: int) -> np.ndarray:
    """How much darker, or lighter, than the paper around it each pixel is: (H, W) from 0 to 255.

    A closing by a square of `side` pixels takes out whatever is dark and holds none; what reaches the picture's
    border is continued beyond it, so that shadows and a desk behind the paper stay, with their edges.
    """
    continued, inside = np.pad(grey, side, "edge"), (slice(side, -side),) * 2
    lightest = ndimage.grey_closing(continued, (side, side))[inside]
    darkest = ndimage.grey_opening(continued, (side, side))[inside]
    if _variation(lightest) <= _variation(darkest):  # without what is dark, less is left to see
        return 255 * (1 - grey / np.maximum(lightest, 1))  # dim light darkens ink and paper alike
    return grey - darkest


def _variation(grey: np.ndarray) -> float:
    return sum(np.abs(np.diff(grey, axis=axis)).sum() for axis in (0, 1))


def softened(grey: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) blurred as much as its edges need for a softness of `sigma` pixels."""
    return ndimage.gaussian_filter(grey, max(0, sigma**2 - _edge_softness(grey) ** 2) ** 0.5, mode="nearest")


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


def _fit_rim(ink: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """A quadratic surface fitted to the rim: what uneven light leaves."""
    deviation = np.abs(ink - np.median(ink[rim]))
    paper = rim & (deviation <= 3 * 1.48 * np.median(deviation[rim]))  # leaves out a glyph that touches the rim
    y, x = (np.linspace(-1, 1, side) for side in ink.shape)
    rows, columns = np.nonzero(paper)
    factors = np.linalg.lstsq(_terms(x[columns], y[rows]), ink[paper], rcond=None)[0]
    # Row by row: the terms of a whole page take 250 MB.
    return np.stack([_terms(x, np.full_like(x, height)) @ factors for height in y])


def _terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, 6) of a quadratic surface at n points."""
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)


def without_rules(ink: np.ndarray, thickness: int, length: int | None = None) -> np.ndarray:
    """`ink` without lines that are horizontal or vertical within some degrees, of up to `thickness` pixels, and of
    `length` pixels or more, by default from edge to edge of the picture; strokes that cross them stay.
    """
    for _ in range(2):
        ink = _without_horizontal(ink, thickness, length or ink.shape[1] - 2).T
    return ink


def _without_horizontal(ink: np.ndarray, thickness: int, length: int) -> np.ndarray:
    thin = ink - ndimage.grey_opening(ink, (thickness + 1, 1), mode="nearest") > _FAINTEST_RULE
    # A line at a slope goes up by a pixel now and then.
    rows = ndimage.binary_dilation(ink > _FAINTEST_RULE, np.ones((3, 1)))
    runs = ndimage.binary_opening(rows, np.ones((1, max(3, round(length / 4)))))
    labels, _ = ndimage.label(runs, np.ones((3, 3)))
    rules, without = np.zeros(ink.shape, bool), ink.copy()
    for label, place in enumerate(ndimage.find_objects(labels), 1):
        line = (labels[place] == label) & thin[place]
        if place[1].stop - place[1].start >= length and line.any():
            without[place] -= 1.2 * np.median(ink[place][line]) * line
            rules[place] |= line
    if not rules.any():
        return ink
    without = np.maximum(without, 0)
    mended = np.minimum(ndimage.grey_closing(without, (thickness + 4, 1)), ink)
    return np.where(rules, mended, without)
