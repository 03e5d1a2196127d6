"""Finds lines and pieces of characters on a page of separated handwriting."""

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
from PIL import Image
from scipy import ndimage

from .ink import extract_ink, without_rules

# Longer side in pixels at which a page is examined: A4 at 200 dpi.
PAGE_SIZE = 2300
MAX_PIECES = 2500  # the largest; so many specks are no writing
MAX_SKEW = 7  # degrees
_LONG = 0.4  # of the page's longer side: rules are longer, and strokes of large letters are not
MIN_CELL = 8  # pixels a side
# Of full ink: strokes are darker, and somewhere much darker.
_STROKE, _CORE = 0.3, 0.5


@dataclass(frozen=True)
class Piece:
    """Ink that is connected, or that no vertical line separates: (h, w) from 0 to 1 at `left`, `top` of the page."""

    ink: np.ndarray
    left: int
    top: int

    @property
    def right(self) -> int:
        return self.left + self.ink.shape[1]

    @property
    def bottom(self) -> int:
        return self.top + self.ink.shape[0]

    @property
    def length(self) -> int:
        return max(self.ink.shape)


@dataclass(frozen=True)
class Page:
    """The ink of a page, upright and without rules, and how its pixels are found in the picture."""

    ink: np.ndarray  # (H, W) from 0 to 1
    marks: np.ndarray  # (H, W), the rules too
    degrees: float  # by which it was turned
    scale: float  # its pixels per pixel of the picture
    size: tuple[int, int]  # of the picture in `scale`, width and height, before it was turned
    picture: tuple[int, int]  # width and height in pixels of the picture

    def in_picture(self, places: np.ndarray) -> np.ndarray:
        """The boxes in pixels of the picture that hold those of the page, both (n, 4): left, top, right, bottom."""
        height, width = self.ink.shape
        x, y = places[:, [0, 2, 0, 2]] - width / 2, places[:, [1, 1, 3, 3]] - height / 2
        cos, sin = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        across, down = x * cos - y * sin + self.size[0] / 2, x * sin + y * cos + self.size[1] / 2
        corners = np.stack([across.min(1), down.min(1), across.max(1), down.max(1)], 1) / self.scale
        return np.clip(corners.round(), 0, np.tile(self.picture, 2)).astype(np.int32)


def find_page(grey: Image.Image, reduction: int = 1) -> Page | None:
    """None if there is no ink; `grey` has one pixel for so many of the picture in either direction."""
    scale = min(1, PAGE_SIZE / max(grey.size))
    size = tuple(max(1, round(scale * side)) for side in grey.size)
    small = np.asarray(grey.resize(size, Image.Resampling.BOX, reducing_gap=2), np.float32)
    ink = extract_ink(small, 0.7, reach=max(40, round(max(size) / 8)))
    if ink is None:
        return None
    degrees = _skew(ink)
    if degrees:
        ink = np.clip(ndimage.rotate(ink, degrees, order=1, prefilter=False), 0, 1)
    thickness = 3 + round(max(size) / 600)
    unruled = without_rules(ink, thickness, round(_LONG * max(size)))
    without = _without_bars(unruled, unruled < ink - 0.05, thickness)
    picture = (reduction * grey.width, reduction * grey.height)
    return Page(without, ink, degrees, scale / reduction, size, picture)


def _skew(ink: np.ndarray) -> float:
    """Degrees by which lines rise to the right: turned by them, ink lies in as few rows as possible."""
    y, x = np.nonzero(ink > _CORE)
    chosen = np.random.default_rng(0).permutation(len(y))[:20_000]
    y, x = y[chosen].astype(np.float32), x[chosen].astype(np.float32)

    def sharpness(degrees: float) -> float:
        rows = y * np.cos(np.radians(degrees)) - x * np.sin(np.radians(degrees))
        return float((np.bincount((rows - rows.min()).astype(int) // 2).astype(float) ** 2).sum())

    best, step = 0.0, 1.0
    angles = np.arange(-MAX_SKEW, MAX_SKEW + step)
    while step > 0.05:
        best = float(max(angles, key=sharpness))
        step /= 4
        angles = best + step * np.arange(-4, 5)
    return best if sharpness(best) > 1.05 * sharpness(0) else 0.0


def _without_bars(ink: np.ndarray, rules: np.ndarray, thickness: int) -> np.ndarray:
    """Without upright bars as thin as rules that end at rules above and below: the sides of boxes."""
    labels, n = ndimage.label(ink > _STROKE, np.ones((3, 3)))
    near = ndimage.binary_dilation(rules, np.ones((7, 1)))
    kept = np.ones(n + 1, bool)
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        ends = [near[rows.start, columns].any(), near[rows.stop - 1, columns].any()]
        kept[label] = not (all(ends) and width <= thickness < height / 5)
    kept[0] = True
    return np.where(kept[labels], ink, 0)


def pieces_of(ink: np.ndarray) -> list[Piece]:
    """What is connected in (H, W) ink from 0 to 1, without specks, from left to right."""
    labels, n = ndimage.label(ink > _STROKE, np.ones((3, 3)))
    if not n:
        return []
    places = ndimage.find_objects(labels)
    peaks = ndimage.maximum(ink, labels, range(1, n + 1))
    masses = ndimage.sum_labels(ink, labels, range(1, n + 1))
    inked = [i for i in np.argsort(-masses, kind="stable")[:MAX_PIECES] if peaks[i] > _CORE]
    pieces = [
        Piece(np.where(labels[places[i]] == i + 1, ink[places[i]], 0), places[i][1].start, places[i][0].start)
        for i in inked
    ]
    height = writing_height(pieces)
    kept = [piece for piece in pieces if piece.ink.sum() > 0.004 * height**2 and piece.length < 6 * height]
    return sorted(kept, key=lambda piece: piece.left)


def writing_height(pieces: list[Piece]) -> float:
    """Of a character, in pixels: the median, in which each piece weighs as much as its ink."""
    if not pieces:
        return 0.0
    heights = np.array([piece.length for piece in pieces], float)
    masses = np.array([piece.ink.sum() for piece in pieces])
    order = np.argsort(heights)
    total = masses[order].cumsum()
    return float(heights[order][np.searchsorted(total, total[-1] / 2)])


def find_lines(pieces: list[Piece], height: float) -> list[list[Piece]]:
    """Pieces by line, from top to bottom and from left to right; what is small goes to the nearest line."""
    bodies = sorted((p for p in pieces if p.ink.shape[0] > 0.4 * height), key=lambda piece: piece.left)
    lines: list[list[Piece]] = []
    for body in bodies:
        scored = [(_overlap(line[-3:], body), i) for i, line in enumerate(lines)]
        overlap, best = max(scored, default=(0, -1))
        if overlap > 0.45:
            lines[best].append(body)
        else:
            lines.append([body])
    for piece in pieces:
        if piece.ink.shape[0] > 0.4 * height or not lines:
            continue
        distance, best = min((_distance(line, piece), i) for i, line in enumerate(lines))
        if distance < 0.7 * height:
            lines[best].append(piece)
    lines.sort(key=lambda line: np.mean([piece.top + piece.bottom for piece in line]))
    return [sorted(line, key=lambda piece: piece.left) for line in lines]


def _overlap(line: list[Piece], piece: Piece) -> float:
    """Of the lower of both heights, how much both share."""
    top, bottom = median(p.top for p in line), median(p.bottom for p in line)
    shared = min(bottom, piece.bottom) - max(top, piece.top)
    return shared / min(bottom - top, piece.bottom - piece.top)


def _distance(line: list[Piece], piece: Piece) -> float:
    """To the nearest piece, in pixels between the boxes."""
    return min(
        np.hypot(
            max(0, p.left - piece.right, piece.left - p.right), max(0, p.top - piece.bottom, piece.top - p.bottom)
        )
        for p in line
    )


def joined(pieces: list[Piece]) -> Piece:
    """Several as one."""
    left, top = min(p.left for p in pieces), min(p.top for p in pieces)
    ink = np.zeros((max(p.bottom for p in pieces) - top, max(p.right for p in pieces) - left), np.float32)
    for p in pieces:
        place = ink[p.top - top : p.bottom - top, p.left - left : p.right - left]
        np.maximum(place, p.ink, out=place)
    return Piece(ink, left, top)


def stacked(line: list[Piece]) -> list[Piece]:
    """A line's pieces, those above one another as one: the dot of an i, a 5 and its bar."""
    groups: list[list[Piece]] = []
    for piece in line:
        for group in groups[-2:]:
            left, right = min(p.left for p in group), max(p.right for p in group)
            shared = min(right, piece.right) - max(left, piece.left)
            if shared > 0.5 * min(right - left, piece.right - piece.left):
                group.append(piece)
                break
        else:
            groups.append([piece])
    return sorted(map(joined, groups), key=lambda piece: piece.left)


def cut(piece: Piece, height: float) -> list[Piece]:
    """A wide piece in up to four parts, at the columns with the least ink."""
    width = piece.ink.shape[1]
    if width < 0.95 * height:
        return [piece]
    columns = ndimage.uniform_filter1d(piece.ink.sum(0), 3)
    least = max(3, round(0.3 * height))
    cuts: list[int] = []
    for column in np.argsort(columns, kind="stable"):
        if len(cuts) == 3 or columns[column] > 0.5 * columns.mean():
            break
        if all(abs(column - other) >= least for other in (0, width, *cuts)):
            cuts.append(int(column))
    edges = [0, *sorted(cuts), width]
    return [part for start, end in pairwise(edges) if (part := _part(piece, start, end))]


def _part(piece: Piece, start: int, end: int) -> Piece | None:
    ink = piece.ink[:, start:end]
    rows = np.flatnonzero((ink > _STROKE).any(1))
    if not len(rows):
        return None
    return Piece(ink[rows[0] : rows[-1] + 1], piece.left + start, piece.top + int(rows[0]))


Cell = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the page


def find_cells(page: Page, n: int) -> list[Cell]:
    """The boxes of a form from left to right, in one frame or in several; empty if there are none.

    Frames without lines between their boxes are divided into `n` of the same width.
    """
    labels, _ = ndimage.label(page.marks > _STROKE, np.ones((3, 3)))
    frames = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height > 16 and width > 0.4 * height and _is_frame(labels[rows, columns] == label):
            frames.append((columns.start, rows.start, columns.stop, rows.stop))
    if not frames:
        return []
    tallest = max(bottom - top for _, top, _, bottom in frames)
    frames = sorted(frame for frame in frames if frame[3] - frame[1] > 0.6 * tallest)
    cells = [cell for frame in frames for cell in _ruled_off(page.marks, frame)]
    if len(cells) > len(frames):
        return cells
    widths = np.array([right - left for left, _, right, _ in frames], float)
    counts = np.maximum(1, np.rint(n * widths / widths.sum())).astype(int)
    return [
        (round(a), top, round(b), bottom)
        for (left, top, right, bottom), count in zip(frames, counts, strict=True)
        for a, b in pairwise(np.linspace(left, right, count + 1))
        if b - a >= MIN_CELL
    ]


def _is_frame(inked: np.ndarray) -> bool:
    """Whether each side of the (h, w) bool is a line along the rim."""
    sides = (inked, inked[::-1], inked.T, inked.T[::-1])
    return all(side[: max(2, len(side) // 6)].any(0).mean() > 0.85 for side in sides)


def _ruled_off(marks: np.ndarray, frame: Cell) -> list[Cell]:
    """The parts of a frame between lines from its top to its bottom."""
    left, top, right, bottom = frame
    covered = (marks[top:bottom, left:right] > _STROKE).mean(0) > 0.85
    lines, _ = ndimage.label(np.concatenate([[True], covered[1:-1], [True]]))
    centres = [round((place.start + place.stop - 1) / 2) for (place,) in ndimage.find_objects(lines)]
    centres[0], centres[-1] = 0, right - left
    return [(left + a, top, left + b, bottom) for a, b in pairwise(centres)]


def cell_ink(page: Page, cell: Cell) -> np.ndarray | None:
    """(h, w) from 0 to 1: what is written in a cell, without its frame; None if nothing is."""
    left, top, right, bottom = cell
    inset = 1 + round(0.08 * min(right - left, bottom - top))
    ink = page.marks[top + inset : bottom - inset, left + inset : right - inset]
    labels, n = ndimage.label(ink > _STROKE, np.ones((3, 3)))
    masses = np.array(ndimage.sum_labels(ink, labels, range(n + 1)))
    peaks = np.array(ndimage.maximum(ink, labels, range(n + 1)))
    masses[0] = 0
    masses[peaks < _CORE] = 0
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        sides = rows.stop - rows.start, columns.stop - columns.start
        ends = (rows.start, columns.start, ink.shape[0] - rows.stop, ink.shape[1] - columns.stop)
        if min(ends) == 0 and min(sides) <= inset:  # of a frame that is not quite straight
            masses[label] = 0
    if masses.max() < 0.004 * ink.size:
        return None
    return np.where((masses > 0.04 * masses.max())[labels], ink, 0)
