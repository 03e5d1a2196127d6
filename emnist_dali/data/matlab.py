"""Reads NIST's MATLAB files, emnist-<split>.mat (version 5): dataset.train and dataset.test of images and labels."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.files import reason
from .idx import MAX_BYTES
from .stored import Stored, check_size

MAGIC = b"MATLAB "
HEADER = 128  # bytes
COMPRESSED = 15  # the type of a compressed element
_ADVICE = "use NIST's file or a copy of it"


def read(path: Path | zipfile.Path) -> dict[str, Stored]:
    """Images as stored, which are transposed, and labels; raises UserError for any other file."""
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            content = _inflated(file)
        dataset = loadmat(content, variable_names=["dataset"])["dataset"][0, 0]
        del content
        arrays = {
            part: [dataset[part][0, 0][kind][0, 0] for kind in ("images", "labels")] for part in ("train", "test")
        }
        for part, (images, labels) in arrays.items():
            side = int(np.sqrt(images.shape[1]))
            if images.dtype != np.uint8 or images.shape[1] != side**2 or labels.dtype.kind not in "uif":
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
        part: Stored(images, labels, f"{path}, {part}.images", f"{path}, {part}.labels")
        for part, (images, labels) in arrays.items()
    }


def _inflated(file: io.BufferedIOBase) -> io.BytesIO:
    """The file without its compression, which scipy would undo without a limit."""
    header = file.read(HEADER)
    if not header.startswith(MAGIC):
        raise ValueError("it is not a MATLAB file")
    if header[:10] != b"MATLAB 5.0" or header[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is not of version 5: save it with -v7")
    order = "<" if header[126:128] == b"IM" else ">"
    result = io.BytesIO(header)
    result.seek(HEADER)
    while tag := file.read(8):
        kind, size = struct.unpack(f"{order}II", tag)
        limit = 2 * MAX_BYTES - result.tell()
        if size > limit:
            raise ValueError("it is larger than EMNIST")
        content = file.read(size)
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            content = inflater.decompress(content, limit)
            if inflater.unconsumed_tail:
                raise ValueError("it is larger than EMNIST")
        else:
            content = tag + content
        result.write(content)
    result.seek(0)
    return result
