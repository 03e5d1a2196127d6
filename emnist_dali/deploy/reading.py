"""Reads separated handwriting: block letters, digits and forms, with several characters in one picture."""

import re
from collections.abc import Callable, Iterator, Sequence
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
from ..runs.typicality import UNTYPICAL
from ..weights import NAME as BUILTIN
from .emnist_style import SIZE, flatten_to_grey, framed
from .segment import (
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
_JOINING, _JOINING_GAP, _CUTTING = 0.5, 15.0, 1.0
# What the logarithm of the typicality weighs beside that of the probability; chosen on the same pages.
_TYPICALITY = 0.6
_LEAST = 1e-6  # probability
MAX_PLACES = 100  # of a pattern for lines: the time grows with them
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
    return read(find(content, boxes, picture), classifier, allowed, pattern)


def find(content: bytes, boxes: int | None, name: Path | str) -> "Writing | Form":
    """What is to be read in an image file: lines, or `boxes` of a form.

    Raises UserError, which begins with `name`, for a file that is not an image, is too large, or shows another number
    of boxes.
    """
    with image_errors(name):
        image, reduced = flatten_to_grey(open_image(content)), reduction(content)
        if boxes is None:
            return find_writing(image, reduced)
        form = find_boxes(image, boxes, reduced)
    if (found := len(form.boxes)) != boxes:
        shown = f"{found} boxes, not {boxes}" if found else f"no row of {boxes} boxes"
        raise UserError(f"{name} shows {shown}; choose another number, or read it as text.")
    return form


def read(found: "Writing | Form", classifier: Classifier, allowed: Allowed, pattern: str | None) -> Reading:
    """What `find` returned, with what is `allowed` because of the `pattern`."""
    reader = read_writing if isinstance(found, Writing) else read_boxes
    return restore(reader(found, classifier, allowed), pattern)


def to_allowed(
    classifier: Classifier, allow: str | None = None, pattern: str | None = None, boxes: int | None = None
) -> Allowed:
    """What `read_text` describes, for the classes of a model.

    Raises UserError for a model of other than EMNIST's images, or if nothing fits.
    """
    classes = classifier.classes
    if not classifier.converted or classifier.shape != (SIZE, SIZE):
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
    if boxes is None and len(places) > MAX_PLACES:
        raise UserError(f"The pattern has {len(places)} characters; give {MAX_PLACES} at most for a line.")
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
    """What may be characters on a page, in plain numbers: (n, …) of the candidates, line by line.

    A line consists of parts from left to right, and a candidate of one of them or of several in a row.
    """

    height: np.ndarray  # () float64: of a character, in pixels of the page
    spans: np.ndarray  # (n, 4) int32: line, first part, end part, and 1 if the first touches the part before it
    places: np.ndarray  # (n, 4) int32: left, top, right, bottom in pixels of the page
    boxes: np.ndarray  # (n, 4) int32: the same in pixels of the picture
    glyphs: np.ndarray  # (n, 28, 28) uint8


def find_writing(image: Image.Image, reduction: int = 1) -> Writing:
    """The lines of a page, in mode L; boxes are in pixels of the picture that was made so many times smaller."""
    page = find_page(image, reduction)
    pieces = [] if page is None else pieces_of(page.ink)
    height = writing_height(pieces)
    spans, found = [], []
    for number, line in enumerate(find_lines(pieces, height)):
        for first, end, touching, piece in _candidates(stacked(line), height):
            spans.append((number, first, end, touching))
            found.append(piece)
    places = _rows([(piece.left, piece.top, piece.right, piece.bottom) for piece in found])
    boxes = places if page is None else page.in_picture(places)
    return Writing(np.float64(height), _rows(spans), places, boxes, _glyphs([framed(piece.ink) for piece in found]))


def _candidates(pieces: Sequence[Piece], height: float) -> Iterator[tuple[int, int, bool, Piece]]:
    """The candidates of a line: first and end part, whether the first touches the part before it, and the ink."""
    parts: list[Piece] = []
    touching: list[bool] = []
    for piece in pieces:
        cuts = cut(piece, height)
        parts += cuts
        touching += [False] + [True] * (len(cuts) - 1)
    for first, part in enumerate(parts):
        yield first, first + 1, touching[first], part
        for end in range(first + 2, min(first + _PARTS, len(parts)) + 1):
            several = parts[first:end]
            if several[-1].left - max(p.right for p in several[:-1]) > _GAP * height:
                break
            whole = joined(several)
            if whole.ink.shape[1] <= _WIDEST * height or all(touching[first + 1 : end]):
                yield first, end, touching[first], whole


def _rows(rows: Sequence[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.int32).reshape(-1, 4)


def _glyphs(glyphs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(glyphs, np.uint8).reshape(-1, SIZE, SIZE)


def read_writing(writing: Writing, classifier: Classifier, allowed: Allowed = ALL) -> Reading:
    """A line that cannot be cut into as many characters as there are places is read without these."""
    probabilities, height = classifier.probabilities(writing.glyphs), float(writing.height)
    gains = np.zeros(len(probabilities))
    if classifier.typicality:
        gains = _TYPICALITY * np.log(np.maximum(classifier.typicality(probabilities), UNTYPICAL))
    read = []
    for number in np.unique(writing.spans[:, 0]):
        rows = np.flatnonzero(writing.spans[:, 0] == number)
        line = Line(writing.spans[rows, 1:], writing.places[rows], height)
        if found := line.read(probabilities[rows], allowed, gains[rows]):
            read.append([(rows[i], row) for i, row in found])
    lefts, rights = writing.places[:, 0], writing.places[:, 2]
    centres = (lefts + rights) / 2
    advances = [centres[b] - centres[a] for line in read for (a, _), (b, _) in pairwise(line)]
    space = _FURTHER * float(np.median(advances)) if advances else 0.0
    texts, lines = [], []
    for line in read:
        characters = [
            Character(classifier.classes[row.argmax()], float(row.max()), tuple(writing.boxes[i].tolist()))
            for i, row in line
        ]
        text = characters[0].character
        for (a, _), (b, _), character in zip(line, line[1:], characters[1:], strict=False):
            is_space = lefts[b] - rights[a] > _SPACE * height and centres[b] - centres[a] > space
            text += (" " if is_space else "") + character.character
        texts.append(text)
        lines.append(tuple(characters))
    return Reading("\n".join(texts), tuple(lines))


class Form(NamedTuple):
    """The boxes of a form, in plain numbers and in reading order."""

    boxes: np.ndarray  # (n, 4) int32: left, top, right, bottom in pixels of the picture
    glyphs: np.ndarray  # (n, 28, 28) uint8 of what is in them; black where nothing is


def find_boxes(image: Image.Image, n: int, reduction: int = 1) -> Form:
    """The boxes of a form in mode L; not always `n`, for which a frame without lines is divided.

    `reduction` is as for `find_writing`.
    """
    page = find_page(image, reduction)
    cells = [] if page is None else find_cells(page, n)
    inks = [cell_ink(page, cell) for cell in cells]
    glyphs = [np.zeros((SIZE, SIZE), np.uint8) if ink is None else framed(ink) for ink in inks]
    return Form(page.in_picture(_rows(cells)) if cells else _rows([]), _glyphs(glyphs))


def read_boxes(form: Form, classifier: Classifier, allowed: Allowed = ALL) -> Reading:
    """A character for each box, a space for an empty one; there are as many boxes as places of `allowed`, if any."""
    possible = allowed.places or [allowed.anywhere] * len(form.boxes)
    line = []
    for box, glyph, row, members in zip(
        form.boxes, form.glyphs, classifier.probabilities(form.glyphs), possible, strict=True
    ):
        likely = restricted(row, members)
        read = (classifier.classes[likely.argmax()], float(likely.max())) if glyph.any() else (" ", 1.0)
        line.append(Character(*read, tuple(box.tolist())))
    return Reading("".join(c.character for c in line).rstrip(), (tuple(line),))


class Line:
    """A line's n candidates, `spans` (n, 3) and `places` (n, 4) as in `Writing`."""

    def __init__(self, spans: np.ndarray, places: np.ndarray, height: float) -> None:
        self._candidates = {(first, end): i for i, (first, end, _) in enumerate(spans.tolist())}
        parts = spans[:, 1] - spans[:, 0] == 1
        self._n = int(parts.sum())
        self._touching = spans[parts, 2].astype(bool).tolist()
        gaps = (places[parts, 0][1:] - places[parts, 2][:-1]) / height
        self._gaps = [0.0, *gaps.tolist()]  # to the part before it, in heights
        self._small = ((places[:, 2:] - places[:, :2]).max(1, initial=0) < _SMALL * height).tolist()

    def read(self, probabilities: np.ndarray, allowed: Allowed, gains: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The likeliest way to take the parts for characters: each character's candidate and its probabilities.

        `probabilities` are (n, classes), and (n,) `gains` are added to their logarithms. Small parts may be left out.
        """
        if allowed.places is not None:
            kinds, places = np.unique(np.stack(allowed.places), axis=0, return_inverse=True)
            found = self._best([restricted(probabilities, kind) for kind in kinds], gains, places.ravel().tolist())
            if found is not None:
                return found
        return self._best([restricted(probabilities, allowed.anywhere)], gains, None) or []

    def _best(
        self, probabilities: Sequence[np.ndarray], gains: np.ndarray, places: Sequence[int] | None
    ) -> list[tuple[int, np.ndarray]] | None:
        """By dynamic programming over the parts, and over the places of a pattern, if there is one: which of the
        `probabilities`, (n, classes), hold in each.
        """
        scores = [(np.log(np.maximum(each.max(1), _LEAST)) + gains).tolist() for each in probabilities]
        best: list[dict[int, tuple[float, tuple | None]]] = [{} for _ in range(self._n + 1)]
        best[0][0] = 0.0, None

        def offer(end: int, place: int, score: float, step: tuple) -> None:
            if place not in best[end] or best[end][place][0] < score:
                best[end][place] = score, step

        for first in range(self._n):
            ends = [
                (end, candidate, self._cost(first, end))
                for end in range(first + 1, first + _PARTS + 1)
                if (candidate := self._candidates.get((first, end))) is not None and not self._small[candidate]
            ]
            small = self._small[self._candidates[first, first + 1]]
            for place, (score, _) in best[first].items():
                if small:
                    offer(first + 1, place, score, (first, place, None))
                if places is not None and place == len(places):
                    continue
                kind, after = (0, place) if places is None else (places[place], place + 1)
                for end, candidate, cost in ends:
                    offer(end, after, score + scores[kind][candidate] - cost, (first, place, (kind, candidate)))
        last = 0 if places is None else len(places)
        if last not in best[self._n]:
            return None
        found, at = [], (self._n, last)
        while at[0]:
            first, place, taken = best[at[0]][at[1]][1]
            if taken is not None:
                kind, candidate = taken
                found.append((candidate, probabilities[kind][candidate]))
            at = first, place
        return found[::-1]

    def _cost(self, first: int, end: int) -> float:
        """Of taking these parts for one character."""
        cost = _CUTTING * (self._touching[first] + (end < self._n and self._touching[end])) / 2
        for part in range(first + 1, end):
            if not self._touching[part]:
                cost += max(0, _JOINING + _JOINING_GAP * self._gaps[part])
        return cost


def restricted(probabilities: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """(…, classes) probabilities given that only the `allowed`, (classes,) bool, are possible."""
    if allowed is None:
        return probabilities
    left = np.where(allowed, np.maximum(probabilities, 1e-12), 0)
    return left / left.sum(-1, keepdims=True)
