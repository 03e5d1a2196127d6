"""Photographs and pages of handwriting, composed from EMNIST's test images: what reading is measured on.

A 28×28 image is enlarged and re-inked: its grey edges become a pen's. Whatever is tuned is tuned on the images at even
positions of the test split; figures are reported on those at odd ones. None is a training image.
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
    """(28, 28) uint8 → (side, side) float from 0 (paper) to 1 (ink); a higher threshold makes thinner strokes."""
    enlarged = np.asarray(Image.fromarray(glyph).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    softness = 2 * 28 / side  # of the edge: about a pixel
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
