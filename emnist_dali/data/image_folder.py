"""Reads a folder of images with a folder for each class: train/<class>/*, test/<class>/*, val/<class>/*, or flat."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.files import is_plain
from ..core.progress import progress
from .decoding import decode
from .idx import MAX_IMAGES
from .image_files import image_errors, read_image_file
from .stored import MAX_CLASSES, Stored

# Bytes of a folder's images at their final size, which are held in memory until they are packed.
MAX_BYTES = 16 * 2**30
# What Windows puts into folders, where other systems hide theirs with a dot, and Hugging Face's `imagefolder`.
IGNORED = ("Thumbs.db", "desktop.ini", "metadata.csv", "metadata.jsonl", "metadata.parquet")


def read(
    folders: Mapping[str, Path], size: int
) -> tuple[dict[str, Stored], tuple[str, ...], dict[str, "ImageFiles"]]:
    """The images of each part at `size` × `size`, the classes in label order, and the files that were read.

    `folders` are those of the parts, train first. Raises UserError for what is no image, and beyond the limits above.
    """
    classes = tuple(entry.name for entry in entries(folders["train"]))
    if len(classes) > MAX_CLASSES:
        raise UserError(
            f"{folders['train']} has {len(classes)} classes; at most {MAX_CLASSES} are supported, because a label is "
            "one byte."
        )
    for name in classes:
        if not entries(folders["train"] / name):
            raise UserError(f"{folders['train'] / name} contains no images; add some, or remove it.")
    files = {part: ImageFiles(folder) for part, folder in folders.items()}
    return {part: _read_part(files[part], folder, classes, size) for part, folder in folders.items()}, classes, files


def entries(folder: Path) -> list[Path]:
    """The entries of `folder` without hidden files, sorted by name in the same order on every system.

    Raises UserError for a name that cannot be stored in a manifest or shown in a message.
    """
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in IGNORED]
    except NotADirectoryError as error:
        raise UserError(
            f"{folder} is a file, not the folder of a class; move it away, or arrange images as train/<class>/* and "
            "test/<class>/*."
        ) from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}); arrange images as train/<class>/* and test/<class>/*."
        ) from error
    for path in paths:
        if not is_plain(path.name):
            raise UserError(
                f"{folder} contains {path.name!a}, a name with control characters or not in UTF-8; rename it."
            )
    return sorted(paths, key=lambda path: path.name)


def image_paths(folder: Path) -> list[Path]:
    """The images of one part, class by class."""
    return [path for entry in entries(folder) for path in entries(entry)]


def check_amount(images: int, size: int, at: object) -> None:
    """Raises UserError for more images than are held in memory."""
    if images > MAX_IMAGES or images * size**2 > MAX_BYTES:
        raise UserError(
            f"{at} contains {images:,} images; at most {MAX_IMAGES:,}, and {MAX_BYTES // 2**30} GiB at "
            f"{size} × {size}, are supported; remove some or lower --size."
        )


def _read_part(files: "ImageFiles", folder: Path, classes: tuple[str, ...], size: int) -> Stored:
    labels = []
    for path in files.paths:
        name = path.parent.name
        if name not in classes:
            raise UserError(f"{path.parent} is not a class of the train images; remove it, or add {name} to train.")
        labels.append(classes.index(name))
    if not labels:
        raise UserError(f"{folder} contains no images; add them as <class>/*.")
    check_amount(len(labels), size, folder)
    images = np.empty((len(labels), size, size), np.uint8)
    decode(files, images)
    return Stored(images, str(folder), np.array(labels, np.uint8), str(folder))


class ImageFiles:
    """The files of one part, hashed over names and contents and counted while they are iterated."""

    def __init__(self, folder: Path) -> None:
        self.paths = image_paths(folder)
        self._folder = folder

    def __iter__(self) -> Iterator[tuple[Path, bytes]]:
        self._digest, self.bytes = hashlib.sha256(), 0
        for path in progress(self.paths, description=f"reading {self._folder.name}", unit=" images"):
            with image_errors(path):
                content = read_image_file(path)
            name = path.relative_to(self._folder).as_posix().encode()
            self._digest.update(len(name).to_bytes(8, "big") + name + len(content).to_bytes(8, "big") + content)
            self.bytes += len(content)
            yield path, content

    @property
    def sha256(self) -> str:
        """Of all that were read."""
        return self._digest.hexdigest()


def hash_images(folder: Path) -> str:
    """The `ImageFiles.sha256` of a part, without decoding any image."""
    files = ImageFiles(folder)
    for _ in files:
        pass
    return files.sha256
