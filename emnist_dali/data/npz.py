"""Reads .npz files: Keras' mnist.npz, MedMNIST's, and sets of one array a file such as Kuzushiji-49's.

The name of an array says its part (x_train, val_images), or else that of its file (arr_0 of k49-test-imgs.npz).
Images have three dimensions, or a fourth of 1 or 3 channels, labels one, or a second of 1.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.files import printable
from ..core.progress import say
from .idx import MAX_IMAGES
from .stored import PARTS, Stored, check_size, part_of, read_as, to_grey

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's
_ADVICE = "save uint8 images (N, H, W) and integer labels (N) with numpy.savez"


def read(paths: Sequence[Path]) -> dict[str, Stored]:
    """The parts that the files hold; raises UserError for anything but such arrays, or too many images."""
    images: dict[str, tuple[np.ndarray, str]] = {}
    labels: dict[str, tuple[np.ndarray, str]] = {}
    for path in paths:
        with read_as("npz", path), zipfile.ZipFile(path) as file:
            for member in file.infolist():
                name = printable(member.filename.removesuffix(".npy"))[:100]
                shape, dtype = _header(file, member)
                part = part_of(name) or part_of(path.stem) or "train"
                found = images if len(shape) > 2 else labels
                if part in found:  # before memory is taken for it
                    raise UserError(f"{path} holds {name} beside another array of {part}: {_ADVICE}.")
                at = f"{path}, {name}"
                _check(shape, dtype, at)
                found[part] = _array(file, member, at), at
    if not images or images.keys() != labels.keys():
        raise UserError(
            f"{paths[0]} holds images of {', '.join(images) or 'no part'}, but labels of "
            f"{', '.join(labels) or 'no part'}: name arrays as x_train, y_train, x_test, y_test."
        )
    if "train" not in images:
        raise UserError(f"{paths[0]} holds no train images, only {', '.join(images)}; add them as x_train, y_train.")
    return {part: Stored(*images[part], *labels[part]) for part in PARTS if part in images}


def _header(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    if member.compress_type not in COMPRESSIONS:
        raise ValueError("a member is compressed by a method that numpy does not use")
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[version](stream)
    return shape, dtype


def _check(shape: tuple[int, ...], dtype: np.dtype, at: str) -> None:
    if len(shape) in (3, 4):
        if dtype != np.uint8 or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise UserError(f"{at} has images of type {dtype} and shape {shape}: {_ADVICE}.")
        check_size(shape[:3], at)
        channels = shape[3] if len(shape) == 4 else 1
        if channels == 3:
            check_size((3 * shape[0], *shape[1:3]), at)
    elif len(shape) == 2 and shape[1] >= 64 and shape[1] == (side := math.isqrt(shape[1])) ** 2:
        raise UserError(
            f"{at} has rows of {shape[1]:,} numbers; reshape images to ({shape[0]}, {side}, {side}): {_ADVICE}."
        )
    elif dtype.kind not in "bui" or len(shape) not in (1, 2) or not 1 <= shape[0] <= MAX_IMAGES or shape[1:] > (1,):
        raise UserError(f"{at} has labels of type {dtype} and shape {shape}, not one integer an image: {_ADVICE}.")


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo, at: str) -> np.ndarray:
    with file.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.ndim == 4 and array.shape[3] == 3:
        say(f"{at} has three channels, which are converted to grey.")
        return to_grey(array)
    if array.ndim == 4:
        return array[..., 0]
    return array if array.ndim == 3 else array.reshape(-1)
