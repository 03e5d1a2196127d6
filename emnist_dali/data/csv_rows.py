"""Reads CSV files of one image a row: its label, then its pixels row by row, with or without a header."""

import math
import warnings
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..core.errors import UserError
from ..core.files import reason
from .stored import Stored, check_size

MAX_LINE = 2**20  # bytes; a row of EMNIST's has at most 3,142
BLOCK = 2**22  # pixels parsed at once
# In a header, the column that is not a pixel; without one it is the first.
LABEL = ("label", "class")
OTHERS = (b";", b"\t")  # separators that are recognized, and refused
_ADVICE = "a row is a label and the pixels of a square image, whole numbers from 0 to 255"


def is_csv(start: bytes, suffix: str = "") -> bool:
    """Whether a file that begins with `start`, whose name ends in `suffix`, may be such a CSV."""
    start = start.removeprefix(BOM_UTF8)
    separators = (b",", *OTHERS) if suffix.lower() == ".csv" else (b",",)
    return start.isascii() and b"\0" not in start and max(map(start.split(b"\n")[0].count, separators)) >= 64


def read(path: Path) -> Stored:
    """Raises UserError if the file is not exactly that, or exceeds the limits of idx files."""
    try:
        with path.open("rb") as file:
            lines = _lines(file, path)
            first = next(lines, "")
            names = [name.strip().strip('"').lower() for name in first.split(",")]
            headed = _are_names(names)
            column = next((names.index(name) for name in LABEL if name in names), 0) if headed else 0
            side = math.isqrt(len(names) - 1)
            if other := next((mark for mark in map(bytes.decode, OTHERS) if first.count(mark) > len(names)), None):
                raise UserError(f"{path} separates its columns by {other!r}; write it with commas.")
            if len(names) > 1 and len(names) == math.isqrt(len(names)) ** 2:
                raise UserError(
                    f"{path} has {len(names):,} columns, which are pixels without a label; leave it out, and draw "
                    "test images with --test-fraction 0.1."
                )
            if len(names) != side**2 + 1 or not side:
                raise UserError(f"{path} has {len(names):,} columns, which are no label and square image: {_ADVICE}.")
            lines = lines if headed else chain([first], lines)
            blocks: list[np.ndarray] = []
            count = 0
            while block := list(islice(lines, max(1, BLOCK // len(names)))):
                check_size((count + len(block), side, side), str(path))
                blocks.append(_parse(block, len(names), path, 1 + headed + count))
                count += len(block)
            if not blocks:
                raise UserError(f"{path} has no rows: {_ADVICE}.")
            rows = np.concatenate(blocks)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than this machine has free; close other programs.") from error
    pixels = np.delete(rows, column, axis=1) if column else rows[:, 1:]
    return Stored(pixels.reshape(-1, side, side), str(path), rows[:, column].astype(np.int64), str(path))


def _are_names(cells: list[str]) -> bool:
    """Whether the cells of the first line are names of columns.

    One of them is the label's, or none is a number, or all differ, as pandas' 0, 0.1, 0.2, … do: of more than 256
    numbers in a row of an image some are equal.
    """
    return (
        any(name in cells for name in LABEL) or not any(map(_is_number, cells)) or 256 < len(cells) == len(set(cells))
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise UserError(f"{path} has a line of more than {MAX_LINE:,} bytes: {_ADVICE}.")
        if line := line.removeprefix(BOM_UTF8).strip():
            yield line.decode("latin-1")


def _parse(lines: list[str], columns: int, path: Path, number: int) -> np.ndarray:
    """The rows of `lines`, the first of which is line `number` of the file: (N, columns) uint8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy before 2.4 makes 0 of 0.5 and 44 of 300
            rows = np.loadtxt(lines, np.uint8, comments=None, delimiter=",", ndmin=2, quotechar='"')
    except ValueError as error:
        raise UserError(f"{path}, from line {number:,} on, cannot be read ({reason(error)}): {_ADVICE}.") from error
    if rows.shape[1] != columns:
        raise UserError(f"{path}, line {number:,} has {rows.shape[1]:,} columns instead of {columns:,}: {_ADVICE}.")
    return rows
