"""Reads separated handwriting: block letters, digits and forms, with several characters in one picture."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..core.errors import UserError
from ..data.image_files import image_errors, open_image, read_image_file
from ..data.image_headers import reduction
from ..runs.classifier import Classifier, load_classifier
from ..weights import NAME as BUILTIN
from .emnist_style import SIZE, flatten_to_grey, framed
from .segment import (
    Page,
    Piece,
    cell_ink,
    cut,
    find_cells,
    find_lines,
    find_page,
    joined,
    pieces_of,
    stacked,
    writing_height,
)

# Of the height of the writing: smaller pieces are dots and dashes.
_SMALL = 0.4
# A space is wider than so much of that height, and its advance so many times the median.
_SPACE, _FURTHER = 0.5, 1.5
# A character has at most so many parts, is at most so wide, and has gaps of at most so much, of that height.
_PARTS, _WIDEST, _GAP = 4, 1.5, 0.25
# In units of the logarithm of a probability: to take two pieces that do not touch for one character, more so the
# wider the gap; and one that is connected for two. Chosen on `bench/reading.py --tuning`.
_JOINING, _JOINING_GAP, _CUTTING = 0.5, 15.0, 2.0
_LEAST = 1e-6  # probability
# What a place of a pattern may be.
_KINDS: dict[str, Callable[[str], bool]] = {"9": str.isdigit, "A": str.isalpha, "*": lambda character: True}


@dataclass(frozen=True)
class Character:
    """A character that was read: its `box` is (left, top, right, bottom) in pixels of the picture."""

    character: str
    probability: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Reading:
    """`text` has a line of the page in each of its lines, and spaces between words."""

    text: str
    lines: tuple[tuple[Character, ...], ...]


class Allowed(NamedTuple):
    """(classes,) bool: the characters that are possible anywhere, and those at each place of a line; None for all."""

    anywhere: np.ndarray | None = None
    places: Sequence[np.ndarray] | None = None


ALL = Allowed()


def read_text(
    picture: str | Path,
    model: str | Path | Classifier = BUILTIN,
    *,
    allow: str | None = None,
    pattern: str | None = None,
    boxes: int | None = None,
) -> Reading:
    """The separated characters in a picture file, in reading order.

    `allow` names the characters that it may have, such as "0-9A-F"; `pattern` says for each place of a line whether
    it is a digit (9), a letter (A), any character (*) or itself (all others, such as -); `boxes` is the number of
    boxes of a form that stand in a row. Raises UserError for what is no picture, for a model of other than EMNIST's
    images, and for a pattern or characters that do not fit the model or the boxes.

    >>> from emnist_dali import read_text
    >>> reading = read_text("form.png", boxes=8, allow="0-9")
    >>> [len(line) for line in reading.lines]
    [8]
    """
    classifier = load_classifier(model) if isinstance(model, str | Path) else model
    allowed = to_allowed(classifier, allow, pattern, boxes)
    with image_errors(picture):
        content = read_image_file(Path(picture))
        image, reduced = flatten_to_grey(open_image(content)), reduction(content)
    if boxes is None:
        return restore(read_writing(find_writing(image, reduced), classifier, allowed), pattern)
    found = find_boxes(image, boxes, reduced)
    if len(found) != boxes:
        shown = f"{len(found)} boxes, not {boxes}" if found else f"no row of {boxes} boxes"
        raise UserError(f"{picture} shows {shown}; choose another number, or read it as text.")
    return restore(read_boxes(found, classifier, allowed), pattern)


def to_allowed(
    classifier: Classifier, allow: str | None = None, pattern: str | None = None, boxes: int | None = None
) -> Allowed:
    """What `read_text` describes, for the classes of a model.

    Raises UserError for a model of other than EMNIST's images, or if nothing fits.
    """
    classes = classifier.classes
    if not classifier.converted:
        raise UserError(f"{classifier.name} reads whole pictures, no text; choose a model of EMNIST's characters.")
    anywhere = None if allow is None else _members(allow, classes)
    if anywhere is not None and not anywhere.any():
        raise UserError(f"None of {allow!r} is a character of the model; allow some of {''.join(classes)}.")
    if pattern is None:
        return Allowed(anywhere)
    places = [np.array([_KINDS[c](name) for name in classes]) for c in pattern if c in _KINDS]
    if anywhere is not None:
        places = [place & anywhere for place in places]
    if not places or not all(place.any() for place in places):
        raise UserError(
            f"The pattern {pattern!r} cannot be read; write 9 for each digit, A for each letter and * for any "
            "character, of which the model must have some."
        )
    if boxes is not None and len(places) != boxes:
        raise UserError(f"The pattern {pattern!r} has {len(places)} characters for {boxes} boxes; give one for each.")
    return Allowed(anywhere, places)


def _members(allow: str, classes: Sequence[str]) -> np.ndarray:
    """(classes,) bool: those in `allow`, where 0-9 is all from 0 to 9."""
    spans = re.findall(r"(.)-(.)|(.)", allow, re.DOTALL)
    return np.array([
        any((first <= name <= last) if first else name == single for first, last, single in spans) for name in classes
    ])  # fmt: skip


def restore(reading: Reading, pattern: str | None) -> Reading:
    """With what the pattern says of lines that have all its characters: the others between them, and its spaces."""
    if pattern is None:
        return reading
    lines = reading.text.split("\n")
    for i, characters in enumerate(reading.lines):
        if len(characters) == sum(c in _KINDS for c in pattern):
            read = iter(character.character for character in characters)
            lines[i] = "".join(next(read) if c in _KINDS else c for c in pattern).rstrip()
    return Reading("\n".join(lines), reading.lines)


class Writing(NamedTuple):
    """What was found on a page, to be read: its lines, and (n, 28, 28) uint8 of whatever may be a character there."""

    page: Page | None
    height: float  # of a character, in pixels of the page
    lines: list["Line"]
    glyphs: np.ndarray


def find_writing(image: Image.Image, reduction: int = 1) -> Writing:
    """The lines of a page, in mode L; boxes are in pixels of the picture that was made so many times smaller."""
    page = find_page(image, reduction)
    pieces = [] if page is None else pieces_of(page.ink)
    height = writing_height(pieces)
    lines = [Line(stacked(line), height) for line in find_lines(pieces, height)]
    glyphs = [framed(piece.ink) for line in lines for piece in line.segments.values()]
    return Writing(page, height, lines, np.stack(glyphs) if glyphs else np.empty((0, SIZE, SIZE), np.uint8))


def read_writing(writing: Writing, classifier: Classifier, allowed: Allowed = ALL) -> Reading:
    """A line that cannot be cut into as many characters as there are places is read without these."""
    probabilities, classes = classifier.probabilities(writing.glyphs), classifier.classes
    read, start = [], 0
    for line in writing.lines:
        rows = probabilities[start : start + len(line.segments)]
        start += len(rows)
        if found := line.read(rows, allowed):
            read.append(found)
    advances = [_advance(a, b) for line in read for (a, _), (b, _) in pairwise(line)]
    space = _FURTHER * float(np.median(advances)) if advances else 0.0
    texts, lines = [], []
    for line in read:
        names = [classes[row.argmax()] for _, row in line]
        text = names[0]
        for (before, _), (piece, _), name in zip(line, line[1:], names[1:], strict=False):
            is_space = piece.left - before.right > _SPACE * writing.height and _advance(before, piece) > space
            text += " " * is_space + name
        texts.append(text)
        lines.append(
            tuple(
                Character(
                    name, float(row.max()), writing.page.in_picture(piece.left, piece.top, piece.right, piece.bottom)
                )
                for (piece, row), name in zip(line, names, strict=True)
            )
        )
    return Reading("\n".join(texts), tuple(lines))


def _advance(before: Piece, piece: Piece) -> float:
    """Pixels of the page from centre to centre."""
    return (piece.left + piece.right - before.left - before.right) / 2


class Box(NamedTuple):
    """A box of a form, in pixels of the picture, and (28, 28) uint8 of what is in it, or None."""

    place: tuple[int, int, int, int]
    glyph: np.ndarray | None


def find_boxes(image: Image.Image, n: int, reduction: int = 1) -> list[Box]:
    """The boxes of a form in mode L, in reading order; not always `n`, for which a frame without lines is divided.

    `reduction` is as for `find_writing`.
    """
    page = find_page(image, reduction)
    cells = [] if page is None else find_cells(page, n)
    inks = [cell_ink(page, cell) for cell in cells]
    return [
        Box(page.in_picture(*cell), None if ink is None else framed(ink))
        for cell, ink in zip(cells, inks, strict=True)
    ]


def read_boxes(boxes: Sequence[Box], classifier: Classifier, allowed: Allowed = ALL) -> Reading:
    """A character for each box, a space for an empty one; there are as many boxes as places of `allowed`, if any."""
    glyphs = [np.zeros((SIZE, SIZE), np.uint8) if box.glyph is None else box.glyph for box in boxes]
    possible = allowed.places or [allowed.anywhere] * len(boxes)
    line = []
    for box, row, members in zip(boxes, classifier.probabilities(np.stack(glyphs)), possible, strict=True):
        likely = restricted(row, members)
        read = (" ", 1.0) if box.glyph is None else (classifier.classes[likely.argmax()], float(likely.max()))
        line.append(Character(*read, box.place))
    return Reading("".join(c.character for c in line).rstrip(), (tuple(line),))


class Line:
    """A line as parts, of which one or several in a row are a character: its `segments`, with first and end part."""

    def __init__(self, pieces: Sequence[Piece], height: float) -> None:
        self._parts: list[Piece] = []
        self._connected: list[bool] = []  # with the part before it
        for piece in pieces:
            parts = cut(piece, height)
            self._parts += parts
            self._connected += [False] + [True] * (len(parts) - 1)
        self._height = height
        self.segments: dict[tuple[int, int], Piece] = {}
        for first, part in enumerate(self._parts):
            self.segments[first, first + 1] = part
            for end in range(first + 2, min(first + _PARTS, len(self._parts)) + 1):
                parts = self._parts[first:end]
                gap = parts[-1].left - max(p.right for p in parts[:-1])
                if gap > _GAP * height:
                    break
                whole = joined(parts)
                connected = all(self._connected[first + 1 : end])
                if whole.ink.shape[1] <= _WIDEST * height or connected:
                    self.segments[first, end] = whole

    def read(self, probabilities: np.ndarray, allowed: Allowed) -> list[tuple[Piece, np.ndarray]]:
        """The likeliest way to take the parts for characters: each character's piece and its probabilities.

        `probabilities` are (segments, classes). Small parts may be left out.
        """
        rows = dict(zip(self.segments, probabilities, strict=True))
        if allowed.places is not None and (found := self._best(rows, allowed.places)) is not None:
            return found
        return self._best({key: restricted(row, allowed.anywhere) for key, row in rows.items()}, None) or []

    def _best(
        self, rows: dict[tuple[int, int], np.ndarray], pattern: Sequence[np.ndarray] | None
    ) -> list[tuple[Piece, np.ndarray]] | None:
        """By dynamic programming over the parts, and over the places of the `pattern`, if there is one."""
        n = len(self._parts)
        best: list[dict[int, tuple[float, tuple | None]]] = [{} for _ in range(n + 1)]
        best[0][0] = 0.0, None

        def offer(end: int, place: int, score: float, step: tuple) -> None:
            if place not in best[end] or best[end][place][0] < score:
                best[end][place] = score, step

        for first in range(n):
            ends = [end for end in range(first + 1, first + _PARTS + 1) if (first, end) in rows]
            for place, (score, _) in best[first].items():
                if self._parts[first].length < _SMALL * self._height:
                    offer(first + 1, place, score, (first, place, None))
                for end in ends:
                    if self.segments[first, end].length < _SMALL * self._height:
                        continue
                    if pattern is not None and place == len(pattern):
                        continue
                    row = rows[first, end]
                    if pattern is not None:
                        row = restricted(row, pattern[place])
                    gain = score + np.log(max(row.max(), _LEAST)) - self._cost(first, end)
                    offer(end, place + (pattern is not None), gain, (first, place, row))
        last = 0 if pattern is None else len(pattern)
        if last not in best[n]:
            return None
        found, at = [], (n, last)
        while at[0]:
            first, place, row = best[at[0]][at[1]][1]
            if row is not None:
                found.append((self.segments[first, at[0]], row))
            at = first, place
        return found[::-1]

    def _cost(self, first: int, end: int) -> float:
        """Of taking these parts for one character."""
        cost = _CUTTING * (self._connected[first] + (end < len(self._parts) and self._connected[end])) / 2
        for part in range(first + 1, end):
            if not self._connected[part]:
                gap = (self._parts[part].left - self._parts[part - 1].right) / self._height
                cost += max(0, _JOINING + _JOINING_GAP * gap)
        return cost


def restricted(probabilities: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """(classes,) probabilities given that only the `allowed`, (classes,) bool, are possible."""
    if allowed is None:
        return probabilities
    left = np.where(allowed, np.maximum(probabilities, 1e-12), 0)
    return left / left.sum()
