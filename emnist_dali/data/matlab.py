"""Reads NIST's MATLAB files, emnist-<split>.mat (version 5): dataset.train and dataset.test of images and labels."""

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
COMPRESSED = 15  # the type of a compressed element
CHUNK = 2**20
_ADVICE = "use NIST's file or a copy of it"


def read(path: Path | zipfile.Path) -> dict[str, Stored]:
    """Images as stored, which are transposed, and labels; raises UserError for any other file."""
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            content = inflated(file)
        dataset = loadmat(content, variable_names=["dataset"])["dataset"][0, 0]
        del content
        arrays = {part: [dataset[part][0, 0][kind] for kind in ("images", "labels")] for part in ("train", "test")}
        for part, (images, labels) in arrays.items():
            side = math.isqrt(images.shape[-1])
            if images.dtype != np.uint8 or images.shape != (len(images), side**2) or labels.dtype.kind not in "uif":
                raise ValueError(f"{part} is of type {images.dtype} and shape {images.shape}")
            check_size((len(images), side, side), f"{path}, {part}")
            arrays[part] = [np.ascontiguousarray(images).reshape(-1, side, side), labels.astype(np.int64).ravel()]
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than this machine has free; close other programs.") from error
    # scipy may raise anything on a broken file.
    except Exception as error:
        raise UserError(
            f"{path} does not hold dataset.train and dataset.test ({reason(error)}); {_ADVICE}."
        ) from error
    return {
        part: Stored(images, f"{path}, {part}.images", labels, f"{path}, {part}.labels")
        for part, (images, labels) in arrays.items()
    }


def inflated(file: BinaryIO) -> io.BytesIO:
    """The file without its compression, which scipy would undo without a limit; raises ValueError."""
    header = file.read(HEADER)
    if not header.startswith(b"MATLAB 5.0") or header[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is not of version 5: save it with -v7")
    order = "<" if header[126:128] == b"IM" else ">"
    result = io.BytesIO()
    result.write(header)
    while tag := file.read(8):
        kind, size = struct.unpack(f"{order}II", tag)
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            while size and (packed := file.read(min(CHUNK, size))):
                size -= len(packed)
                while packed:
                    _write(result, inflater.decompress(packed, CHUNK))
                    packed = inflater.unconsumed_tail
        else:
            _write(result, tag)
            while size and (content := file.read(min(CHUNK, size))):
                size -= len(content)
                _write(result, content)
    result.seek(0)
    return result


def _write(result: io.BytesIO, content: bytes) -> None:
    if result.tell() + len(content) > MAX_BYTES + CHUNK:
        raise ValueError("it is larger than EMNIST")
    result.write(content)
