"""A strict reader for idx files, the format of MNIST and EMNIST, gzipped or not.

An idx file is big-endian: two zero bytes, one byte for the element type, one for the number of dimensions, each
dimension as uint32, then the elements.
"""

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..core.errors import UserError
from ..core.files import reason

# Limits on what a header may claim. EMNIST's largest file has 697,932 images of 28 × 28, 522 MiB; a gzip of zeros is
# a thousandth of the size it claims, and train, test and the shard being packed must fit into 2 GiB.
MAX_IMAGES = 10_000_000
MAX_SIDE = 1024
MAX_BYTES = 768 * 2**20

GZIP_MAGIC = b"\x1f\x8b"
UINT8, INT32 = 0x08, 0x0C
KINDS = {1: "labels", 3: "images"}  # magic numbers 2049 and 2051
# QMNIST's labels: rows of eight int32, of which the first is the class.
WIDE_LABELS = bytes((0, 0, INT32, 2))
CHUNK = 2**20


def read_images(path: Path | zipfile.Path) -> np.ndarray:
    """Images as stored (EMNIST's are transposed): (N, H, W) uint8.

    Gzip is detected by content, not by name. Raises UserError if the file is not exactly that, or exceeds MAX_IMAGES,
    MAX_SIDE or MAX_BYTES.
    """
    return _read(path, 3)


def read_labels(path: Path | zipfile.Path, classes: int, offset: int) -> np.ndarray:
    """Labels (N,) uint8 in 0 … `classes` - 1; those in the file start at `offset`.

    Raises UserError if the file is not exactly that.
    """
    return class_indices(stored_labels(path), classes, offset, path)


def stored_labels(path: Path | zipfile.Path) -> np.ndarray:
    """Labels (N,) as they stand in the file, uint8, or int32 for QMNIST's; raises UserError."""
    return _read(path, 1)


def class_indices(labels: np.ndarray, classes: int, offset: int, at: object) -> np.ndarray:
    """`labels` (N,), integers that start at `offset`, as uint8 in 0 … `classes` - 1.

    Raises UserError for any other, which begins with `at`, the place of the labels.
    """
    outside = (labels < offset) | (labels >= offset + classes)
    if outside.any():
        first = int(outside.argmax())
        raise UserError(
            f"{at}: label {labels[first]} at position {first} is not in {offset} to {offset + classes - 1}, so the "
            "file does not belong to this split; check its name and --split."
        )
    return (labels - offset).astype(np.uint8)


def is_idx(start: bytes) -> bool:
    """Whether a file that begins with `start`, gunzipped, is idx with labels or images."""
    return start[:4] == WIDE_LABELS or (start[:3] == bytes((0, 0, UINT8)) and start[3:4] in (b"\1", b"\3"))


def _read(path: Path | zipfile.Path, dimensions: int) -> np.ndarray:
    try:
        with path.open("rb") as file:
            zipped = file.peek(2)[:2] == GZIP_MAGIC
            stream = gzip.GzipFile(fileobj=file) if zipped else file
            shape, dtype = _header(stream, dimensions, path)
            array = np.empty(shape, dtype)
            flat = array.reshape(-1).view(np.uint8)
            filled = 0
            # In chunks: read() or readinto() of a whole gzip stream would hold everything twice.
            while chunk := stream.read(min(CHUNK, flat.size - filled)):
                flat[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                filled += len(chunk)
            if filled < flat.size:
                raise UserError(
                    f"{path} is truncated: it has {filled:,} of the {flat.size:,} bytes that its header declares; "
                    "download or copy it again."
                )
            # One byte past the end also makes gzip check its CRC.
            if stream.read(1):
                raise UserError(
                    f"{path} continues after the {flat.size:,} bytes that its header declares; download or copy it "
                    "again."
                )
            return array[:, 0].astype(np.int32) if dtype.itemsize == 4 else array
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({reason(error)}); download or copy it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than this machine has free; close other programs.") from error


def _header(stream: BinaryIO, dimensions: int, path: Path | zipfile.Path) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and type in the header, checked before any memory is allocated for it."""
    header = stream.read(4)
    if dimensions == 1 and header == WIDE_LABELS:
        return _shape(stream, 2, path, 4), np.dtype(">i4")
    if len(header) < 4 or header[:2] != b"\0\0":
        raise UserError(f"{path} is not an idx file; use the official file or a copy of it, gzipped or not.")
    if header[2] != UINT8:
        raise UserError(
            f"{path} has elements of idx type 0x{header[2]:02X}, but EMNIST's are unsigned bytes (0x08); use the "
            "official file."
        )
    if header[3] != dimensions:
        if header[3] in KINDS:
            raise UserError(
                f"{path} holds {KINDS[header[3]]} instead of {KINDS[dimensions]}: the two files are swapped; rename "
                "them."
            )
        raise UserError(
            f"{path} has {header[3]} dimensions, but {KINDS[dimensions]} have {dimensions}; use the official file."
        )
    return _shape(stream, dimensions, path, 1), np.dtype(np.uint8)


def _shape(stream: BinaryIO, dimensions: int, path: Path | zipfile.Path, itemsize: int) -> tuple[int, ...]:
    header = stream.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise UserError(f"{path} is truncated in its header; download or copy it again.")
    count, *sides = shape = struct.unpack(f">{dimensions}I", header)
    in_bounds = 1 <= count <= MAX_IMAGES and all(1 <= side <= MAX_SIDE for side in sides)
    if not in_bounds or itemsize * math.prod(shape) > MAX_BYTES:
        raise UserError(
            f"{path} is damaged or too large: its header declares {' × '.join(f'{side:,}' for side in shape)} bytes, "
            f"but at most {MAX_IMAGES:,} images, sides of {MAX_SIDE:,} and {MAX_BYTES // 2**20} MiB are supported; "
            "use the official file."
        )
    return shape
