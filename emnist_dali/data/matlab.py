"""Reads NIST's MATLAB files, emnist-<split>.mat: the struct `dataset` of train and test, each of images and labels.

A file of version 5 is a header and elements: a tag of type and size, the content, padding to 8 bytes. A matrix is an
element of elements: flags, shape, name, and numbers column by column or, of a struct, the names and matrices of its
fields. Only as much of it is read here: on a broken file scipy's reader ends the process.
"""

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..core.errors import UserError
from ..core.files import reason
from .idx import MAX_BYTES
from .stored import Stored, check_size

MAGIC = b"MATLAB "
HEADER = 128  # bytes
CHUNK = 2**20
MAX_ELEMENTS = 64  # of one matrix; NIST's have up to 8
MATRIX, COMPRESSED = 14, 15  # types of elements
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
STRUCT = 2  # the class in a matrix's flags
_ADVICE = "use NIST's file or a copy of it"


def read(path: Path | zipfile.Path) -> dict[str, Stored]:
    """Images as stored, which are transposed, and labels; raises UserError for any other file."""
    try:
        with path.open("rb") as file:
            content, order = inflated(file)
        variables = dict(_matrix(matrix, order) for kind, matrix in _elements(content, order) if kind == MATRIX)
        dataset = variables["dataset"]
        if not isinstance(dataset, dict):
            raise ValueError("dataset is no struct")
        return {part: _part(dataset, part, order, path) for part in ("train", "test")}
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than this machine has free; close other programs.") from error
    except (OSError, EOFError, ValueError, KeyError, IndexError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path} does not hold dataset.train and dataset.test ({reason(error)}); {_ADVICE}."
        ) from error


def inflated(file: BinaryIO) -> tuple[memoryview, str]:
    """The elements of the file without their compression, and their byte order, < or >; raises ValueError."""
    header = file.read(HEADER)
    if not header.startswith(b"MATLAB 5.0") or header[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is not of version 5: save it with -v7")
    order = "<" if header[126:128] == b"IM" else ">"
    result = io.BytesIO()
    while tag := file.read(8):
        kind, size = struct.unpack(f"{order}II", tag)
        if kind != COMPRESSED:
            _write(result, tag)
        inflater = zlib.decompressobj()
        while size and (content := file.read(min(CHUNK, size))):
            size -= len(content)
            while content and kind == COMPRESSED:
                _write(result, inflater.decompress(content, CHUNK))
                content = inflater.unconsumed_tail
            _write(result, content)
    return result.getbuffer(), order


def _write(result: io.BytesIO, content: bytes) -> None:
    if result.tell() + len(content) > MAX_BYTES + CHUNK:
        raise ValueError("it is larger than EMNIST")
    result.write(content)


def _elements(content: memoryview, order: str) -> list[tuple[int, memoryview]]:
    """Type and content of the elements that follow each other in `content`."""
    elements = []
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        at += 8
        end = at + size + -size % 8
        if kind >> 16:  # up to 4 bytes stand in the tag itself
            kind, size, at, end = kind & 0xFFFF, kind >> 16, at - 4, at
        if at + size > len(content) or len(elements) == MAX_ELEMENTS:
            raise ValueError("it is truncated or not of such elements")
        elements.append((kind, content[at : at + size]))
        at = end
    return elements


def _matrix(content: memoryview, order: str) -> tuple[str, np.ndarray | dict[str, memoryview]]:
    """The name of a matrix, and its numbers or, of a struct of one row, the contents of its fields' matrices."""
    (_, flags), (_, shape), (_, name), *rest = _elements(content, order)
    shape = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if flags[0 if order == "<" else 3] == STRUCT:
        (_, length), (_, names), *fields = rest
        (size,) = struct.unpack(f"{order}i", length)
        if size < 1:
            raise ValueError("a struct has names without letters")
        names = [bytes(names[at : at + size]).split(b"\0")[0].decode("latin-1") for at in range(0, len(names), size)]
        return bytes(name).decode("latin-1"), dict(zip(names, (field for _, field in fields), strict=True))
    kind, numbers = rest[0]
    array = np.frombuffer(numbers, np.dtype(NUMBERS[kind]).newbyteorder(order))
    if math.prod(shape) != len(array) or min(shape) < 0:
        raise ValueError(f"it has {len(array)} numbers of shape {shape}")
    return bytes(name).decode("latin-1"), array.reshape(shape, order="F")


def _part(dataset: dict[str, memoryview], part: str, order: str, path: Path | zipfile.Path) -> Stored:
    fields = _struct(dataset[part], order)
    (_, images), (_, labels) = (_matrix(fields[kind], order) for kind in ("images", "labels"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        raise ValueError(f"{part}.images are no rows of unsigned bytes")
    side = math.isqrt(images.shape[1])
    if images.shape[1] != side**2:
        raise ValueError(f"{part}.images have {images.shape[1]} pixels")
    check_size((len(images), side, side), f"{path}, {part}.images")
    if not isinstance(labels, np.ndarray) or not np.isin(labels, range(256)).all():
        raise ValueError(f"{part}.labels are no numbers from 0 to 255")
    rows = np.ascontiguousarray(images).reshape(-1, side, side)
    return Stored(rows, f"{path}, {part}.images", labels.astype(np.uint8).ravel(), f"{path}, {part}.labels")


def _struct(content: memoryview, order: str) -> dict[str, memoryview]:
    _, fields = _matrix(content, order)
    if not isinstance(fields, dict):
        raise ValueError("it is no struct")
    return fields
