"""Where images come from: the official files, a folder or zip of idx files, a folder of images, or drawn glyphs."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import is_plain, printable, reason, sha256
from ..core.progress import progress
from . import download, idx
from .decoding import decode
from .emnist import ARCHIVE_FOLDER, OFFICIAL_FILES, SPLITS
from .image_files import image_errors, read_image_file

MAX_CLASSES = 256
# Bytes of a folder's images at their final size, which are held in memory until they are packed.
MAX_BYTES = 16 * 2**30
# Bytes of a zip's central directory, which takes 15 times as much memory once parsed; NIST's has 3 kB.
MAX_DIRECTORY = 2**20
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NIST's; a 9-byte LZMA header can ask for gigabytes
# What Windows puts into folders; other systems hide theirs with a dot.
IGNORED = ("Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Part:
    """Upright images (N, H, W) uint8, possibly a transposed view, and labels (N,) uint8."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class SourceFile:
    """A file that images came from, or one part of a folder of images, hashed over names and contents in order."""

    name: str
    bytes: int
    sha256: str
    official: bool


@dataclass(frozen=True)
class Source:
    """`origin` is "official", "glyphs" or the resolved path; `parts` are train and test, and unseen for glyphs.

    `classes` are in label order. `official` means that every file is NIST's and the numbers of images are too.
    """

    origin: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    files: tuple[SourceFile, ...]
    official: bool


def origin(source: str) -> str:
    """How a manifest names a source: official, glyphs, or the resolved path. Raises UserError for an invalid path."""
    if source in ("official", "glyphs"):
        return source
    try:
        path = str(Path(source).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, a loop of links, a null byte
        raise UserError(
            f"The source {printable(source)} is not a valid path ({reason(error)}); correct it."
        ) from error
    if not is_plain(path):
        raise UserError(f"The path of the source {printable(path)} contains control characters; rename it.")
    return path


def listing_digest(split: str, source: str) -> str | None:
    """sha256 over names, sizes and modification times of the files that `load` would read; None if not a path."""
    if source in ("official", "glyphs"):
        return None
    kind, paths = _detect(split, Path(origin(source)))
    if kind == "images":
        (folder,) = paths
        paths = [path for part in ("train", "test") for path in _image_paths(folder / part)]
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def content_hashes(split: str, source: str) -> list[str]:
    """The sha256 of each of `Source.files` as `load` would give them for a path, without decoding any image."""
    kind, paths = _detect(split, Path(origin(source)))
    if kind == "images":
        return [_hash_images(paths[0] / part) for part in ("train", "test")]
    if kind == "zip":
        return [file.sha256 for file in _with_members(split, paths[0], lambda members: [*map(_source_file, members)])]
    return [_source_file(path).sha256 for path in paths]


def load(split: str, source: str, cache: Path, size: int = 28) -> Source:
    """Images and labels of `split` from `source`: official (downloaded into `cache`), glyphs, or a path.

    A path is a folder with the split's four idx files under their official names (gzipped or not), NIST's gzip.zip or
    the folder that contains it, or a folder of images, train/<class>/* and test/<class>/*. Only a folder of images
    can be a split of any name; its images are resized to `size` × `size`, and of an animation the first frame is
    taken. Raises UserError if anything is missing, damaged, inconsistent or beyond the limits above.
    """
    if source == "official":
        _check_split(split)
        return _load_idx(split, source, download.fetch(split, cache))
    if source == "glyphs":
        _check_split(split)
        from . import glyphs  # needs matplotlib

        classes = SPLITS[split].classes
        parts = {name: Part(images, labels) for name, (images, labels) in glyphs.draw(classes).items()}
        return Source(source, tuple(classes), parts, (), official=False)
    resolved = origin(source)
    kind, paths = _detect(split, Path(resolved))
    if kind == "images":
        return _load_images(paths[0], size)
    if kind == "zip":
        return _with_members(split, paths[0], lambda members: _load_idx(split, resolved, members))
    return _load_idx(split, resolved, paths)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(
            f"EMNIST has no split {split!r}; choose one of {', '.join(SPLITS)} (only a folder of images can have "
            "another name)."
        )


def _detect(split: str, path: Path) -> tuple[str, list[Path]]:
    """The kind of source at `path`, with its paths: "idx" (four files), "zip" (archive) or "images" (folder)."""
    if path.is_file():
        _check_split(split)
        return "zip", [path]
    if not path.is_dir():
        raise UserError(
            f"The source {path} does not exist; give official, glyphs, or the path of a folder or gzip.zip."
        )
    missing = []
    if split in SPLITS:
        gzipped = download.split_paths(split, path)
        paths = [file if file.is_file() else file.with_suffix("") for file in gzipped]
        missing = [official.name for official, file in zip(gzipped, paths, strict=True) if not file.is_file()]
        if not missing:
            return "idx", paths
        archive = path / download.ARCHIVE_NAME
        if archive.is_file():
            return "zip", [archive]
    if (path / "train").is_dir():
        return "images", [path]
    _check_split(split)
    raise UserError(
        f"{path} lacks {', '.join(missing)}; add these files, or {download.ARCHIVE_NAME}, or images as "
        "train/<class>/* and test/<class>/*."
    )


def _with_members(split: str, archive: Path, read: Callable[[list[zipfile.Path]], Any]) -> Any:
    """Calls `read` with the split's four members of NIST's archive."""
    try:
        with _BoundedReader(io.FileIO(archive)) as file, zipfile.ZipFile(file) as members:
            # Nothing is extracted, so no name in the archive can reach the file system.
            paths = [
                zipfile.Path(members, f"{ARCHIVE_FOLDER}/{path.name}") for path in download.split_paths(split, Path())
            ]
            missing = [path.at for path in paths if not path.exists()]
            if missing:
                raise UserError(f"{archive} lacks {', '.join(missing)}; use NIST's complete gzip.zip.")
            for path in paths:
                member = members.getinfo(path.at)
                if member.file_size > idx.MAX_BYTES:
                    raise UserError(f"{path} is too large to be EMNIST; use NIST's gzip.zip.")
                if member.compress_type not in COMPRESSIONS:
                    raise UserError(f"{path} is compressed by a method that NIST does not use; use NIST's gzip.zip.")
            return read(paths)
    except UserError:
        raise
    # zipfile may raise anything on a broken archive.
    except Exception as error:
        raise UserError(
            f"{archive} cannot be read as a zip ({reason(error)}); use NIST's gzip.zip or a folder of idx files."
        ) from error


class _BoundedReader(io.BufferedReader):
    """Limits each read, and so the central directory: zipfile reports a longer one as truncated."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_DIRECTORY if size is None or size < 0 else min(size, MAX_DIRECTORY))


def _load_idx(split: str, origin: str, paths: Sequence[Path] | Sequence[zipfile.Path]) -> Source:
    info = SPLITS[split]
    parts = {}
    for name, images_path, labels_path in (("train", *paths[:2]), ("test", *paths[2:])):
        images = idx.read_images(images_path).transpose(0, 2, 1)
        labels = idx.read_labels(labels_path, len(info.classes), info.label_offset)
        if len(images) != len(labels):
            raise UserError(
                f"{images_path} holds {len(images):,} images, but {labels_path} holds {len(labels):,} labels; "
                "use two files that belong together."
            )
        parts[name] = Part(images, labels)
    train, test = (parts[name].images.shape for name in ("train", "test"))
    if train[1:] != test[1:]:
        raise UserError(
            f"{paths[0]} has images of {train[1]} × {train[2]}, but {paths[2]} of {test[1]} × {test[2]}; "
            "use files with images of one size."
        )
    files = tuple(map(_source_file, paths))
    official = all(file.official for file in files) and (train[0], test[0]) == (info.train, info.test)
    return Source(origin, tuple(info.classes), parts, files, official)


def _source_file(path: Path | zipfile.Path) -> SourceFile:
    size = path.stat().st_size if isinstance(path, Path) else path.root.getinfo(path.at).file_size
    digest = sha256(path)
    official = OFFICIAL_FILES.get(path.name)
    return SourceFile(path.name, size, digest, official is not None and digest == official.sha256)


def _load_images(folder: Path, size: int) -> Source:
    classes = tuple(entry.name for entry in _entries(folder / "train"))
    if len(classes) > MAX_CLASSES:
        raise UserError(
            f"{folder / 'train'} has {len(classes)} classes; at most {MAX_CLASSES} are supported, because a label is "
            "one byte."
        )
    parts, files = {}, []
    for name in ("train", "test"):
        parts[name], file = _load_part(folder / name, classes, size)
        files.append(file)
    return Source(str(folder), classes, parts, tuple(files), official=False)


def _entries(folder: Path) -> list[Path]:
    """The entries of `folder` without hidden files, sorted by name in the same order on every system.

    Raises UserError for a name that cannot be stored in a manifest or shown in a message.
    """
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in IGNORED]
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


def _load_part(folder: Path, classes: tuple[str, ...], size: int) -> tuple[Part, SourceFile]:
    files, labels = _ImageFiles(folder), []
    for path in files.paths:
        name = path.parent.name
        if name not in classes:
            raise UserError(f"{path.parent} is not a class of the train images; remove it, or add {name} to train.")
        labels.append(classes.index(name))
    if not labels:
        raise UserError(f"{folder} contains no images; add them as <class>/*.")
    if len(labels) > idx.MAX_IMAGES or len(labels) * size**2 > MAX_BYTES:
        raise UserError(
            f"{folder} contains {len(labels):,} images; at most {idx.MAX_IMAGES:,}, and {MAX_BYTES // 2**30} GiB at "
            f"{size} × {size}, are supported; remove some or lower --size."
        )
    images = np.empty((len(labels), size, size), np.uint8)
    decode(files, images)
    return Part(images, np.array(labels, np.uint8)), files.source_file()


def _image_paths(folder: Path) -> list[Path]:
    """The images of one part, class by class."""
    return [path for entry in _entries(folder) for path in _entries(entry)]


class _ImageFiles:
    """The files of one part of a folder of images, hashed over names and contents while they are iterated."""

    def __init__(self, folder: Path) -> None:
        self.paths = _image_paths(folder)
        self._folder = folder

    def __iter__(self) -> Iterator[tuple[Path, bytes]]:
        self._digest, self._bytes = hashlib.sha256(), 0
        for path in progress(self.paths, description=f"reading {self._folder.name}", unit=" images"):
            with image_errors(path):
                content = read_image_file(path)
            name = path.relative_to(self._folder).as_posix().encode()
            self._digest.update(len(name).to_bytes(8, "big") + name + len(content).to_bytes(8, "big") + content)
            self._bytes += len(content)
            yield path, content

    def source_file(self) -> SourceFile:
        """Of all that were read."""
        return SourceFile(self._folder.name, self._bytes, self._digest.hexdigest(), False)


def _hash_images(folder: Path) -> str:
    files = _ImageFiles(folder)
    for _ in files:
        pass
    return files.source_file().sha256
