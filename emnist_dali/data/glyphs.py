"""A stand-in for EMNIST that needs no download: characters of matplotlib's fonts, warped to look handwritten.

Each glyph is drawn large, warped (affine and elastic) and blurred, then converted as EMNIST was (Cohen et al. 2017,
"EMNIST: an extension of MNIST to handwritten letters", arXiv:1702.05373): Gaussian blur at high resolution, crop to
the glyph, square frame with the aspect ratio kept, a border of 2 pixels, bicubic resize to 28×28, intensities
stretched to the full range. One thing differs: the frame is centred on the glyph's centre of mass, not on its
bounding box.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..core.errors import UserError
from ..core.progress import progress

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# The fonts, by family, that every matplotlib since 3.9 has and that cover CHARACTERS. LastResortHE, cmex10 and cmsy10
# map them to other shapes; cmti10 was added in 3.11.
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic",
    "cmb10", "cmmi10", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
UNSEEN_FONTS = ("STIXGeneralItalic", "cmss10")
TRAIN_FONTS = tuple(font for font in FONTS if font not in UNSEEN_FONTS)
PARTS = ("train", "test", "unseen")

SIZE = 28
_BORDER = 2
# Side of the canvas on which glyphs are warped, and the longer side of a glyph before the warp, in pixels.
_CANVAS = 64
_GLYPH = 38
# Pixels added to (or, if negative, removed from) a glyph's outline, at twice the canvas's resolution: strokes of
# about EMNIST's width from fonts whose stems differ threefold. Of the bold fonts, only the sans serifs have no
# hairlines that thinning would lose.
_STROKES = (0, 1, 2)
_STROKES_BOLD_SANS = (-3, -2, -1)
# The elastic field has this many control points along each axis, displaced by up to 8 canvas pixels before smoothing;
# the σ of the blurs is in the same pixels. Chosen to match EMNIST's grey levels (Balanced: mean 0.173 and standard
# deviation 0.331, here 0.170 and 0.323; strokes of 2.4 pixels, here 2.3).
_KNOTS = 5
_SIGMAS = np.linspace(0.4, 0.9, 8, dtype=np.float32)
_CHUNK = 256


def draw(
    classes: str, seed: int = 0, per_class: int = 600, test_per_class: int = 60
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws the characters of `classes`, upright, white on black; labels are positions in `classes`.

    Returns images (N, 28, 28) uint8 and labels (N,) uint8 for each part: "train", "test" (same fonts, other samples)
    and "unseen" (UNSEEN_FONTS, which the other parts never use; as many images as "test"). Every class has the same
    number of images, and any len(classes) consecutive images contain one of each class.

    An image depends only on its character, its part, its number within its class and the seed, not on the other
    classes or the number of images. Two runs give the same bytes; another CPU or FreeType version may differ by one
    grey level.

    Raises UserError for characters outside CHARACTERS or repeated ones, a number of images below 1, a seed that is
    not an unsigned 64-bit integer, or a font missing from matplotlib.
    """
    _check(classes, seed, per_class, test_per_class)
    folder = _font_folder()
    counts = {"train": per_class, "test": test_per_class, "unseen": test_per_class}
    images = {part: np.empty((n, len(classes), SIZE, SIZE), np.uint8) for part, n in counts.items()}
    with progress(description="drawing", total=len(classes) * sum(counts.values()), unit="img") as bar:
        for label, character in enumerate(classes):
            glyphs = {font: _glyphs(folder / f"{font}.ttf", character) for font in FONTS}
            for part, n in counts.items():
                fonts = UNSEEN_FONTS if part == "unseen" else TRAIN_FONTS
                bases = np.concatenate([glyphs[font] for font in fonts])
                uniform = _random_numbers(seed, part, character, n)
                for start in range(0, n, _CHUNK):
                    rows = slice(start, start + _CHUNK)
                    images[part][rows, label] = _convert(_warp(bases, uniform[rows]), uniform[rows, 5])
                    bar.update(len(uniform[rows]))
    return {
        part: (stack.reshape(-1, SIZE, SIZE), np.tile(np.arange(len(classes), dtype=np.uint8), len(stack)))
        for part, stack in images.items()
    }


def _random_numbers(seed: int, part: str, character: str, n: int) -> np.ndarray:
    """(n, 6 + 2 · _KNOTS²) float32 in [0, 1), a row for each image; a row does not depend on `n`."""
    key = np.array([seed, PARTS.index(part) << 32 | ord(character)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((n, 6 + 2 * _KNOTS**2), np.float32)


def _check(classes: str, seed: int, per_class: int, test_per_class: int) -> None:
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(CHARACTERS):
        raise UserError(f"Glyphs cannot be drawn of {classes!r}; give distinct characters of 0-9, A-Z and a-z.")
    if min(per_class, test_per_class) < 1:
        raise UserError(f"{min(per_class, test_per_class)} glyphs per class cannot be drawn; ask for at least 1.")
    if not 0 <= seed < 2**64:
        raise UserError(f"The seed of the glyphs is {seed}; it must be between 0 and 2**64 - 1.")


def _font_folder() -> Path:
    import matplotlib  # 0.2 s

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    missing = [font for font in FONTS if not (folder / f"{font}.ttf").is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks the font {missing[0]}.ttf; install matplotlib with pip, which includes its fonts."
        )
    return folder


def _glyphs(path: Path, character: str) -> np.ndarray:
    """The character at several stroke widths, (strokes, _CANVAS, _CANVAS) uint8, its bounding box centred."""
    box = ImageFont.truetype(path, 100).getbbox(character)
    font = ImageFont.truetype(path, round(100 * 2 * _GLYPH / max(box[2] - box[0], box[3] - box[1])))
    left, top, right, bottom = font.getbbox(character)
    corner = (_CANVAS - (left + right) // 2, _CANVAS - (top + bottom) // 2)
    glyphs = []
    for stroke in _STROKES_BOLD_SANS if "Sans" in path.stem and "Bold" in path.stem else _STROKES:
        canvas = Image.new("L", (2 * _CANVAS, 2 * _CANVAS))
        ImageDraw.Draw(canvas).text(corner, character, font=font, fill=255, stroke_width=max(stroke, 0))
        if stroke < 0:
            canvas = canvas.filter(ImageFilter.MinFilter(1 - 2 * stroke))
        glyphs.append(np.asarray(canvas.reduce(2)))
    return np.stack(glyphs)


def _warp(bases: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Randomly chosen `bases` (B, _CANVAS, _CANVAS) under random smooth warps: (N, _CANVAS, _CANVAS) float32."""
    choice = (uniform[:, 0] * len(bases)).astype(np.int32)
    spread = 2 * uniform - 1
    angle, shear = math.radians(12) * spread[:, 1], 0.3 * spread[:, 2]
    width, scale = np.exp(0.2 * spread[:, 3]), np.exp(0.1 * spread[:, 4])
    cos, sin = np.cos(angle), np.sin(angle)
    # (2, 2, N), maps the warped canvas back to the base: shear, then rotation, then stretch.
    linear = np.array([[cos, sin + shear * cos], [-sin, cos - shear * sin]]) / scale
    linear *= np.stack([1 / width, width])[:, None]
    grid = np.arange(_CANVAS, dtype=np.float32) - (_CANVAS - 1) / 2
    source = linear[:, 0, :, None, None] * grid + linear[:, 1, :, None, None] * grid[:, None]
    knots = np.linspace(grid[0], grid[-1], _KNOTS, dtype=np.float32)
    smooth = np.exp(-(((grid[:, None] - knots) / (knots[1] - knots[0])) ** 2))
    smooth /= smooth.sum(1, keepdims=True)
    source += smooth @ (8 * spread[:, 6:]).reshape(-1, 2, _KNOTS, _KNOTS).swapaxes(0, 1) @ smooth.T
    source += (_CANVAS - 1) / 2
    # The outermost pixels of a base are black, so clipping adds no ink and keeps every neighbour inside.
    np.clip(source, 0, _CANVAS - 1.001, out=source)
    corner = np.floor(source)
    x, y = source - corner
    column, row = corner.astype(np.int32)
    index = (choice[:, None, None] * _CANVAS + row) * _CANVAS + column
    flat = bases.astype(np.float32).reshape(-1)
    above, below = flat.take(index), flat.take(index + _CANVAS)
    above += x * (flat.take(index + 1) - above)
    below += x * (flat.take(index + _CANVAS + 1) - below)
    return above + y * (below - above)


def _convert(canvas: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """EMNIST's conversion of (N, _CANVAS, _CANVAS) to (N, 28, 28) uint8; `uniform` (N,) chooses the blurs."""
    at = np.arange(_CANVAS, dtype=np.float32)
    blur = np.exp(-(((at[:, None] - at) / _SIGMAS[:, None, None]) ** 2) / 2)
    blur = (blur / blur.sum(1, keepdims=True))[(uniform * len(_SIGMAS)).astype(np.int32)]
    mass = canvas.sum((1, 2))
    centres, reach = [], np.zeros(len(canvas), np.float32)
    for axis in (1, 2):
        centre = (canvas.sum(axis) * at).sum(1) / mass
        ink = canvas.max(axis) > 64
        first, last = ink.argmax(1), _CANVAS - 1 - ink[:, ::-1].argmax(1)
        reach = np.maximum(reach, np.maximum(centre - first, last - centre) + 1)
        centres.append(centre)
    step = 2 * reach[:, None] / (SIZE - 2 * _BORDER)
    pixels = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    columns, rows = (_cubic(centre[:, None] + pixels * step, step) @ blur for centre in centres)
    images = rows @ canvas @ columns.swapaxes(1, 2)
    images *= 255 / images.max((1, 2), keepdims=True)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _cubic(centres: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Weights (N, SIZE, _CANVAS) of the canvas's pixels around `centres` (N, SIZE): Keys' cubic, a = -0.5."""
    wide = np.maximum(step, 1)[:, :, None]
    d = np.minimum(np.abs(np.arange(_CANVAS, dtype=np.float32) - centres[:, :, None]) / wide, 2)
    weights = np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2)
    # Where the frame extends beyond the canvas the sum, elsewhere about `wide`, approaches zero.
    return weights / np.maximum(weights.sum(-1, keepdims=True), wide / 2)
