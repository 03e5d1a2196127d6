"""Photographs and pages of handwriting, composed from EMNIST's test images: what reading is measured on.

A 28×28 image is enlarged and re-inked: its grey edges become a pen's. Whatever is tuned is tuned on the images at
even positions of the test split; figures are reported on those at odd ones. None is a training image.
"""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

BLACK, BLUE, RED = (40, 38, 42), (35, 55, 140), (170, 40, 45)
PAPER = (226, 223, 214)


def reinked(glyph: np.ndarray, side: int, threshold: float = 0.45) -> np.ndarray:
    """(28, 28) or larger, uint8 → (side, side) float from 0 (paper) to 1 (ink).

    A higher threshold makes thinner strokes.
    """
    enlarged = np.asarray(Image.fromarray(glyph).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    # Of the edge: about a pixel, where EMNIST's grey rises by a half in one of its pixels.
    softness = 0.5 * len(glyph) / side
    return np.clip((enlarged - threshold) / softness + 0.5, 0, 1)


def written(ink: np.ndarray, colour: Sequence[int] = BLACK, paper: Sequence[int] = PAPER) -> np.ndarray:
    """(H, W) ink → (H, W, 3) float from 0 to 255."""
    return ink[..., None] * np.array(colour, np.float32) + (1 - ink[..., None]) * np.array(paper, np.float32)


def photographed(scene: np.ndarray, rng: np.random.Generator, noise: float = 3.0) -> Image.Image:
    """(H, W, 3) → a picture with a sensor's noise, in grey levels."""
    return Image.fromarray(np.clip(np.rint(scene + rng.normal(0, noise, scene.shape)), 0, 255).astype(np.uint8))


class _Place(NamedTuple):
    """A glyph in a picture of WIDTH × HEIGHT pixels."""

    glyph: np.ndarray
    side: int
    top: int
    left: int

    def ink(self, threshold: float = 0.45, degrees: float = 0) -> np.ndarray:
        ink = reinked(self.glyph, self.side, threshold)
        if degrees:
            ink = np.clip(ndimage.rotate(ink, degrees, reshape=False, order=1), 0, 1)
        whole = np.zeros((HEIGHT, WIDTH), np.float32)
        whole[self.top : self.top + self.side, self.left : self.left + self.side] = ink
        return whole


WIDTH, HEIGHT = 320, 280


def _plain(place: _Place, rng: np.random.Generator) -> Image.Image:
    return photographed(written(place.ink()), rng)


def _soft_shadow(place: _Place, rng: np.random.Generator) -> Image.Image:
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.7 + 0.3 * np.tanh(1.5 * (x * np.cos(angle) + y * np.sin(angle)))
    return photographed(written(place.ink()) * light[..., None], rng)


def _hard_shadow(place: _Place, rng: np.random.Generator) -> Image.Image:
    shade = ndimage.gaussian_filter(_half_plane(rng, rng.uniform(-60, 60)), 1)
    return photographed(written(place.ink()) * (1 - 0.5 * shade[..., None]), rng)


def _desk(place: _Place, rng: np.random.Generator) -> Image.Image:
    """Beyond an edge of the paper, which does not reach the glyph, lies a dark desk."""
    side, tilt = rng.integers(4), np.tan(np.radians(rng.uniform(-4, 4)))
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    if side % 2:
        x, y = y, x
    free = (place.left, WIDTH - place.left - place.side) if side % 2 == 0 else (
        place.top, HEIGHT - place.top - place.side)  # fmt: skip
    depth = max(8, rng.uniform(0.3, 0.9) * free[0 if side < 2 else 1])
    end = (WIDTH if side % 2 == 0 else HEIGHT) - depth
    inside = x + tilt * (y - y.mean()) < depth if side < 2 else x + tilt * (y - y.mean()) > end
    grain = ndimage.gaussian_filter(rng.normal(0, 60, (HEIGHT, WIDTH)), (1, 12))[..., None]
    desk = np.array((92, 62, 40), np.float32) + grain
    mask = ndimage.gaussian_filter(inside.astype(np.float32), 0.7)[..., None]
    return photographed((1 - mask) * written(place.ink()) + mask * desk, rng)


def _half_plane(rng: np.random.Generator, offset: float) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    angle = rng.uniform(0, 2 * np.pi)
    distance = (x - WIDTH / 2) * np.cos(angle) + (y - HEIGHT / 2) * np.sin(angle)
    return (distance > offset).astype(np.float32)


def _rotated(place: _Place, rng: np.random.Generator) -> Image.Image:
    return photographed(written(place.ink(degrees=rng.choice((-10, 10)))), rng)


def _jpeg(place: _Place, rng: np.random.Generator) -> Image.Image:
    return compressed(_plain(place, rng), 12)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """After JPEG at that quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _lined(place: _Place, rng: np.random.Generator) -> Image.Image:
    return photographed(written(place.ink(), BLUE, PAPER) * _rules(rng, 44, False), rng)


def _squared(place: _Place, rng: np.random.Generator) -> Image.Image:
    return photographed(written(place.ink(), BLUE, PAPER) * _rules(rng, 28, True), rng)


def _rules(rng: np.random.Generator, pitch: int, both: bool) -> np.ndarray:
    """(H, W, 3) factors of bluish lines every `pitch` pixels."""
    lines = np.zeros((HEIGHT, WIDTH), np.float32)
    lines[rng.integers(pitch) :: pitch] = 1
    if both:
        lines[:, rng.integers(pitch) :: pitch] = 1
    lines = np.clip(1.4 * ndimage.gaussian_filter(lines, 0.7), 0, 1)
    return 1 - lines[..., None] * np.array((0.35, 0.25, 0.12), np.float32)


def _pencil(place: _Place, rng: np.random.Generator) -> Image.Image:
    grain = np.clip(0.75 + ndimage.gaussian_filter(rng.normal(0, 0.5, (HEIGHT, WIDTH)), 1), 0.2, 1)
    return photographed(written(place.ink(0.55) * grain, (120, 120, 124)), rng)


def _blurred(place: _Place, rng: np.random.Generator) -> Image.Image:
    return photographed(ndimage.gaussian_filter(written(place.ink()), (5, 5, 0)), rng)


def _thin(place: _Place, rng: np.random.Generator) -> Image.Image:
    return photographed(written(place.ink(0.75)), rng)


CONDITIONS: dict[str, Callable[[_Place, np.random.Generator], Image.Image]] = {
    "plain paper": _plain,
    "soft shadow": _soft_shadow,
    "hard shadow": _hard_shadow,
    "desk edge": _desk,
    "±10°": _rotated,
    "JPEG quality 12": _jpeg,
    "lines": _lined,
    "squares": _squared,
    "pencil": _pencil,
    "5-pixel blur": _blurred,
    "thin strokes": _thin,
}


def photograph(glyph: np.ndarray, condition: str, rng: np.random.Generator) -> Image.Image:
    """A (28, 28) uint8 glyph, light on dark, as a photograph of 320×280 pixels with dark ink on paper."""
    side = int(rng.integers(100, 150))
    top, left = rng.integers(25, HEIGHT - side - 25), rng.integers(25, WIDTH - side - 25)
    return CONDITIONS[condition](_Place(glyph, side, int(top), int(left)), rng)


class Written(NamedTuple):
    """A page, what is written on it, and where: boxes (n, 4) of left, top, right, bottom, line by line."""

    image: Image.Image
    lines: list[list[int]]  # places of the glyphs
    spaces: list[set[int]]  # of a line: before which of its characters
    boxes: np.ndarray


MILLIMETRES = 25.4


def page(
    glyphs: np.ndarray,
    rng: np.random.Generator,
    dpi: int = 200,
    ruled: str = "no",
    skew: float = 0,
    shadow: bool = False,
    colour: Sequence[int] = BLACK,
    noise: float = 4,
    touching: float = 0,
) -> Written:
    """Five lines of ten glyphs (50, 28, 28) on paper of 148 × 105 mm, 8 mm high and in words of two to six.

    `ruled` is no, lines or squares; `skew` in degrees; `touching` the share of neighbours in a word that touch.
    """
    pixels = dpi / MILLIMETRES
    height, width, side = round(105 * pixels), round(148 * pixels), round(8 * pixels)
    ink = np.zeros((height, width), np.float32)
    lines, spaces, boxes, used = [], [], [], 0
    for row in range(5):
        left, top = 12 * pixels, (12 + 16 * row) * pixels
        line, before, word = [], set(), int(rng.integers(2, 7))
        for column in range(10):
            if word == 0:
                left, word = left + side, int(rng.integers(2, 7))
                before.add(column)
            drawn = reinked(glyphs[used], side)
            x, y = round(left), round(top + rng.uniform(-0.5, 0.5) * pixels)
            if touching and column and column not in before and rng.random() < touching:
                x = _against(ink[y : y + side], drawn, x)
                left = x
            ink[y : y + side, x : x + side] = np.maximum(ink[y : y + side, x : x + side], drawn)
            rows, columns = (np.flatnonzero((drawn > 0.5).any(axis)) for axis in (1, 0))
            boxes.append((x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1))
            line.append(used)
            left, word, used = left + side * rng.uniform(1.0, 1.15), word - 1, used + 1
        lines.append(line)
        spaces.append(before)
    scene = written(ink, colour) * _printed_rules(height, width, pixels, ruled)
    scene = _lit(_skewed(scene, skew), shadow, rng)
    return Written(
        photographed(scene, rng, noise), lines, spaces, _turned(np.array(boxes, float), skew, width, height)
    )


def _against(line: np.ndarray, drawn: np.ndarray, x: int) -> int:
    """The first place from `x` to the left where what is drawn touches what stands in the line."""
    side = drawn.shape[1]
    strokes, there = drawn > 0.5, line > 0.5
    return next((place for place in range(x, x - side, -1) if (there[:, place : place + side] & strokes).any()), x)


def _skewed(scene: np.ndarray, degrees: float) -> np.ndarray:
    paper = np.array(PAPER, np.float32)
    return ndimage.rotate(scene - paper, degrees, reshape=False, order=1) + paper if degrees else scene


def _lit(scene: np.ndarray, shadow: bool, rng: np.random.Generator) -> np.ndarray:
    """With a shadow over half of it, whose edge is soft or hard by chance, if so."""
    if not shadow:
        return scene
    height, width = scene.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = ((x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)) / width
    edge = 1 / (1 + np.exp(-np.clip(along * rng.choice((8, 400)), -50, 50)))
    return scene * (1 - 0.45 * edge[..., None])


def _printed_rules(height: int, width: int, pixels: float, ruled: str) -> np.ndarray:
    lines = np.zeros((height, width), np.float32)
    pitch, thickness = (8 if ruled == "lines" else 5) * pixels, max(1, round(0.25 * pixels))
    for k in range(1, int(height / pitch)):
        if ruled != "no":
            lines[round(k * pitch) : round(k * pitch) + thickness] = 1
    for k in range(1, int(width / pitch)):
        if ruled == "squares":
            lines[:, round(k * pitch) : round(k * pitch) + thickness] = 1
    return 1 - lines[..., None] * np.array((0.35, 0.25, 0.12), np.float32)


def _turned(boxes: np.ndarray, degrees: float, width: int, height: int) -> np.ndarray:
    """The boxes around `boxes` (n, 4) after `ndimage.rotate` of the picture by so many degrees."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = boxes[:, [0, 2, 0, 2]] - width / 2, boxes[:, [1, 1, 3, 3]] - height / 2
    across, down = x * cos + y * sin + width / 2, -x * sin + y * cos + height / 2
    return np.stack([across.min(1), down.min(1), across.max(1), down.max(1)], 1)


def form(
    glyphs: np.ndarray,
    rng: np.random.Generator,
    dpi: int = 200,
    skew: float = 0,
    shadow: bool = False,
    colour: Sequence[int] = BLACK,
) -> Image.Image:
    """A printed row of boxes of 9 × 11 mm on paper, with one of the glyphs (n, 28, 28) in each."""
    pixels = dpi / MILLIMETRES
    height, width = round(32 * pixels), round((9 * len(glyphs) + 24) * pixels)
    across, down, side = 9 * pixels, 11 * pixels, round(7.5 * pixels)
    left, top, thickness = 12 * pixels, 10 * pixels, max(1, round(0.3 * pixels))
    lines, ink = np.zeros((2, height, width), np.float32)
    for edge in (top, top + down):
        lines[round(edge) : round(edge) + thickness, round(left) : round(left + across * len(glyphs)) + thickness] = 1
    for k in range(len(glyphs) + 1):
        x = round(left + k * across)
        lines[round(top) : round(top + down), x : x + thickness] = 1
    for k, glyph in enumerate(glyphs):
        x = round(left + k * across + (across - side) / 2 + rng.uniform(-0.3, 0.3) * pixels)
        y = round(top + (down - side) / 2 + rng.uniform(-0.8, 0.8) * pixels)
        place = ink[y : y + side, x : x + side]
        np.maximum(place, reinked(glyph, side), out=place)
    printed = written(lines, (70, 70, 70))
    scene = (1 - ink[..., None]) * printed + ink[..., None] * np.array(colour, np.float32)
    return photographed(_lit(_skewed(scene, skew), shadow, rng), rng)
