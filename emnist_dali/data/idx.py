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
UINT8 = 0x08
KINDS = {1: "labels", 3: "images"}  # magic numbers 2049 and 2051
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
    labels = _read(path, 1)
    outside = (labels < offset) | (labels >= offset + classes)
    if outside.any():
        first = int(outside.argmax())
        raise UserError(
            f"{path}: label {labels[first]} at position {first} is not in {offset} to {offset + classes - 1}, so the "
            "file does not belong to this split; check its name and --split."
        )
    labels -= offset
    return labels


def _read(path: Path | zipfile.Path, dimensions: int) -> np.ndarray:
    try:
        with path.open("rb") as file:
            zipped = file.peek(2)[:2] == GZIP_MAGIC
            stream = gzip.GzipFile(fileobj=file) if zipped else file
            array = np.empty(_shape(stream, dimensions, path), np.uint8)
            flat = array.reshape(-1)
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
            return array
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({reason(error)}); download or copy it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than this machine has free; close other programs.") from error


def _shape(stream: BinaryIO, dimensions: int, path: Path | zipfile.Path) -> tuple[int, ...]:
    """The shape in the header, checked before any memory is allocated for it."""
    size = 4 + 4 * dimensions
    header = stream.read(size)
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
    if len(header) < size:
        raise UserError(f"{path} is truncated in its header; download or copy it again.")
    count, *sides = shape = struct.unpack(f">{dimensions}I", header[4:])
    in_bounds = 1 <= count <= MAX_IMAGES and all(1 <= side <= MAX_SIDE for side in sides)
    if not in_bounds or math.prod(shape) > MAX_BYTES:
        raise UserError(
            f"{path} is damaged or too large: its header declares {' × '.join(f'{side:,}' for side in shape)} bytes, "
            f"but at most {MAX_IMAGES:,} images, sides of {MAX_SIDE:,} and {MAX_BYTES // 2**20} MiB are supported; "
            "use the official file."
        )
    return shape
