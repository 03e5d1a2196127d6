"""Pictures of what is no character of EMNIST's: what refusing is measured on.

All are dark ink on paper, as photographs of handwriting are. The settings of `runs/typicality.py` were chosen on the
kinds in TUNING; figures are reported on those in KINDS, which share no drawing with them.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from handwriting import photographed, reinked, written

SIDE = 280
_Draw = Callable[[np.random.Generator], np.ndarray]


def _glyph(font: Path, codes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """A character of a font as a hand might write it: turned, and bent."""
    picture = Image.new("L", (SIDE, SIDE))
    size = int(rng.integers(110, 160))
    options = {"fill": 255, "anchor": "mm", "stroke_width": int(rng.integers(0, 4))}
    ImageDraw.Draw(picture).text((SIDE / 2, SIDE / 2), chr(rng.choice(codes)), font=_font(font, size), **options)
    turned = picture.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    bends = [ndimage.gaussian_filter(rng.normal(0, rng.uniform(60, 140), (SIDE, SIDE)), 25) for _ in range(2)]
    places = np.mgrid[:SIDE, :SIDE] + np.stack(bends)
    return ndimage.map_coordinates(np.asarray(turned, np.float32) / 255, places, order=1)


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@cache
def _codes(path: Path, *ranges: tuple[int, int]) -> tuple[int, ...]:
    """The characters in the ranges, first and last, that a font has."""
    from fontTools.ttLib import TTFont

    has = TTFont(str(path)).getBestCmap()
    return tuple(code for first, last in ranges for code in range(first, last + 1) if code in has)


def _dejavu(*ranges: tuple[int, int]) -> _Draw:
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return lambda rng: _glyph(font, _codes(font, *ranges), rng)


def kana(font: Path) -> _Draw:
    """Hiragana, which Kuzushiji-MNIST shows, of a font that has them."""
    return lambda rng: _glyph(font, _codes(font, (0x3042, 0x3093)), rng)


def _lines(paths: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Strokes through points from -1 to 1, turned and stretched."""
    width, angle = int(rng.integers(14, 34)), rng.uniform(-0.3, 0.3)
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    scales = rng.uniform(0.7, 1.1) * 150 * np.array([1, rng.uniform(0.8, 1.2)])
    picture = Image.new("L", (2 * SIDE, 2 * SIDE))
    draw = ImageDraw.Draw(picture)
    for path in paths:
        points = np.asarray(path) @ turned.T * scales + SIDE + rng.normal(0, 3, (len(path), 2))
        draw.line(list(map(tuple, points)), fill=255, width=width, joint="curve")
        for x, y in points[[0, -1]]:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255


def _arc(x: float, y: float, radius: float, start: float = 0, end: float = 2 * np.pi) -> np.ndarray:
    angles = np.linspace(start, end, 60)
    return np.c_[x + radius * np.cos(angles), y + radius * np.sin(angles)]


def _drawing(drawings: Sequence[Sequence[np.ndarray]]) -> _Draw:
    return lambda rng: _lines(drawings[rng.integers(len(drawings))], rng)


_STAR = [[(math.sin(0.8 * np.pi * i), -math.cos(0.8 * np.pi * i)) for i in range(6)]]
_HOUSE = [
    [(-0.8, 1), (-0.8, 0), (0, -1), (0.8, 0), (0.8, 1), (-0.8, 1)],
    [(-0.2, 1), (-0.2, 0.3), (0.2, 0.3), (0.2, 1)],
]
_TURNS = np.linspace(0, 5 * np.pi, 120)
_SPIRAL = [np.c_[_TURNS * np.cos(_TURNS), _TURNS * np.sin(_TURNS)] / _TURNS[-1]]
_ZIGZAG = [np.c_[np.linspace(-1, 1, 9), [-0.5, 0.5] * 4 + [-0.5]]]
_MAN = [_arc(0, -0.6, 0.35), [(0, -0.25), (0, 0.4)], [(-0.6, 0), (0.6, 0)], [(-0.4, 1), (0, 0.4), (0.4, 1)]]
_CROSSED_BOX = [[(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)], [(-1, -1), (1, 1)], [(1, -1), (-1, 1)]]
_SMILEY = [_arc(0, 0, 1), _arc(-0.3, -0.3, 0.06), _arc(0.3, -0.3, 0.06), _arc(0, 0.15, 0.5, 0.3, np.pi - 0.3)]
_SHAPES = [_STAR, _HOUSE, _SPIRAL, _ZIGZAG, _MAN, _CROSSED_BOX, _SMILEY]

_SLEEVES = [(-0.5, -0.2), (-0.8, 0), (-1, -0.4), (-0.3, -0.8)], [(0.3, -0.8), (1, -0.4), (0.8, 0), (0.5, -0.2)]
_SHIRT = [[*_SLEEVES[1], (0.5, 0.9), (-0.5, 0.9), *_SLEEVES[0]], _arc(0, -0.8, 0.3, 0, np.pi)]
_TROUSERS = [[(-0.5, -1), (0.5, -1), (0.6, 1), (0.2, 1), (0, -0.3), (-0.2, 1), (-0.6, 1), (-0.5, -1)]]
_DRESS = [[(-0.3, -1), (-0.35, -0.3), (-0.7, 1), (0.7, 1), (0.35, -0.3), (0.3, -1), (0, -0.7), (-0.3, -1)]]
_SHOE = [[(-1, -0.4), (-0.4, -0.3), (0.2, 0.1), (0.9, 0.2), (1, 0.5), (-1, 0.5), (-1, -0.4)], [(-1, 0.3), (1, 0.35)]]
_BAG = [[(-0.9, -0.2), (0.9, -0.2), (0.8, 0.9), (-0.8, 0.9), (-0.9, -0.2)], _arc(0, -0.2, 0.5, np.pi, 2 * np.pi)]
_BOOT = [
    [(-0.5, -1), (0.1, -1), (0.1, 0.2), (0.9, 0.4), (0.9, 0.8), (-0.5, 0.8), (-0.5, -1)],
    [(-0.5, -0.6), (0.1, -0.6)],
]
_CLOTHES = [_SHIRT, _TROUSERS, _DRESS, _SHOE, _BAG, _BOOT]


def _filled(draw: _Draw) -> _Draw:
    """As seen in Fashion-MNIST: no outlines but surfaces."""
    return lambda rng: ndimage.binary_fill_holes(draw(rng) > 0.5).astype(np.float32)


def _scribble(rng: np.random.Generator) -> np.ndarray:
    paths = []
    for _ in range(rng.integers(1, 4)):
        path = ndimage.gaussian_filter1d(rng.normal(0, 1, (120, 2)), 8, axis=0, mode="wrap")
        paths.append((path - path.mean(0)) / np.abs(path).max())
    return _lines(paths, rng)


def _blot(rng: np.random.Generator) -> np.ndarray:
    """Noise, of grains of 1 to 8 pixels, in the middle of the paper."""
    grains = ndimage.gaussian_filter(rng.normal(0, 1, (SIDE, SIDE)), rng.uniform(1, 8))
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    middle = np.exp(-(((x**2 + y**2) / 0.35) ** 3))
    return np.clip((3 * grains / grains.std() + rng.uniform(-1, 1)) * middle, 0, 1)


def _dots(rng: np.random.Generator) -> np.ndarray:
    """Noise of another kind: 10 to 40 dots."""
    picture = Image.new("L", (SIDE, SIDE))
    for _ in range(rng.integers(10, 41)):
        x, y, radius = *rng.uniform(70, SIDE - 70, 2), rng.uniform(3, 10)
        ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(picture, np.float32) / 255


TUNING: dict[str, _Draw] = {
    "other scripts": _dejavu((0x10D0, 0x10F6), (0x561, 0x587), (0x5D0, 0x5EA), (0x1401, 0x1676)),
    "dingbats": _dejavu((0x2600, 0x26A0), (0x2701, 0x27BE), (0x2190, 0x22FF)),
    "drawn shapes": _drawing(_SHAPES),
    "scribbles": _scribble,
    "blots": _blot,
}
KINDS: dict[str, _Draw] = {
    "outlines of clothes": _drawing(_CLOTHES),
    "silhouettes of clothes": _filled(_drawing(_CLOTHES)),
    "dots": _dots,
}


def picture(draw: _Draw, rng: np.random.Generator) -> Image.Image:
    """A photograph of 280×280 pixels."""
    return photographed(written(draw(rng)), rng)


def touching(glyphs: np.ndarray) -> _Draw:
    """Two of the (N, 28, 28) glyphs side by side, which overlap by one to three of EMNIST's pixels."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        left, right = (_trimmed(glyph) for glyph in glyphs[rng.choice(len(glyphs), 2, replace=False)])
        overlap = int(rng.integers(1, 4))
        both = np.zeros((28, left.shape[1] + right.shape[1] - overlap), np.uint8)
        both[:, : left.shape[1]] = left
        both[:, -right.shape[1] :] = np.maximum(both[:, -right.shape[1] :], right)
        square = np.zeros((56, 56), np.uint8)
        start = 28 - both.shape[1] // 2
        square[14:42, start : start + both.shape[1]] = both
        return reinked(square, SIDE)

    return draw


def _trimmed(glyph: np.ndarray) -> np.ndarray:
    columns = np.flatnonzero(glyph.max(0) > 60)
    return glyph[:, columns[0] : columns[-1] + 1]
