"""Where images come from: the official files, a folder or zip of idx files, a folder of images, drawn glyphs."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import is_plain, printable, reason, sha256
from ..core.progress import progress
from . import download, idx
from .emnist import ARCHIVE_FOLDER, OFFICIAL_FILES, SPLITS
from .image_files import grey, open_image, read, readable

MAX_CLASSES = 256
# Of a folder's images at their final size, which are held in memory until they are packed.
MAX_BYTES = 16 * 2**30
# Of a zip's list of members, which takes 15 times as much as objects; NIST's has 3 kB.
MAX_DIRECTORY = 2**20
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NIST's; LZMA asks for gigabytes by a header of 9 bytes
# What Windows drops into folders; other systems' droppings are hidden by a dot.
IGNORED = ("Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Part:
    """Images (N, H, W) uint8, upright (a transposed view of what is stored, maybe), and labels (N,) uint8."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class SourceFile:
    """A file that images came from, or a part of a folder of images: then over names and contents in order."""

    name: str
    bytes: int
    sha256: str
    official: bool


@dataclass(frozen=True)
class Source:
    """`origin` is "official", "glyphs" or the resolved path; `parts` are train and test, of glyphs also unseen.

    `classes` are in label order. `official` is true where every file is the official one and the counts are too.
    """

    origin: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    files: tuple[SourceFile, ...]
    official: bool


def origin(source: str) -> str:
    """How a manifest names a source: official, glyphs, or the resolved path; UserError where that cannot be told."""
    if source in ("official", "glyphs"):
        return source
    try:
        path = str(Path(source).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:  # no such user; a loop of links; a null byte
        raise UserError(f"The source {printable(source)} cannot be found ({reason(error)}); name another.") from error
    if not is_plain(path):
        raise UserError(f"The source {printable(path)} has control characters in its name; rename it.")
    return path


def listing(split: str, source: str) -> str | None:
    """sha256 over the names, sizes and times of the files that `load` reads there; None of what is no path."""
    if source in ("official", "glyphs"):
        return None
    kind, paths = _found(split, Path(origin(source)))
    if kind == "images":
        (folder,) = paths
        paths = [path for part in ("train", "test") for path in _paths(folder / part)]
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def hashes(split: str, source: str) -> list[str]:
    """The sha256 of each of the `files` that `load` gives of a path, without any image being decoded."""
    kind, paths = _found(split, Path(origin(source)))
    if kind == "images":
        return [_hashed(paths[0] / part, _paths(paths[0] / part)).sha256 for part in ("train", "test")]
    if kind == "zip":
        return [file.sha256 for file in _in_zip(split, paths[0], lambda members: list(map(_source_file, members)))]
    return [_source_file(path).sha256 for path in paths]


def load(split: str, source: str, cache: Path, size: int = 28) -> Source:
    """Images and labels of `split` from `source`: official (downloaded into `cache`), glyphs or a path.

    A path is a folder with the split's four idx files under their official names (gzipped or not), NIST's
    gzip.zip, the folder it lies in, or a folder of images, train/<class>/* and test/<class>/*. Only those images
    are brought to `size` × `size`, and only they go with any name for `split`. Of an animated image the first
    frame is taken. UserError where something is missing, damaged, inconsistent or beyond the limits above.
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
    kind, paths = _found(split, Path(origin(source)))
    where = origin(source)
    if kind == "images":
        return _load_images(paths[0], size)
    if kind == "zip":
        return _in_zip(split, paths[0], lambda members: _load_idx(split, where, members))
    return _load_idx(split, where, paths)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(
            f"EMNIST has no split {split!r}; take one of {', '.join(SPLITS)} (any name goes with a folder of images)."
        )


def _found(split: str, path: Path) -> tuple[str, list[Path]]:
    """What a path is a source as: idx with the split's four files, zip with the archive, images with their folder."""
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
        missing = [file.name for file, found in zip(gzipped, paths, strict=True) if not found.is_file()]
        if not missing:
            return "idx", paths
        archive = path / download.ARCHIVE_NAME
        if archive.is_file():
            return "zip", [archive]
    if (path / "train").is_dir():
        return "images", [path]
    _check_split(split)
    raise UserError(
        f"{path} lacks {', '.join(missing)}; put them there, or {download.ARCHIVE_NAME}, "
        f"or images as train/<class>/* and test/<class>/*."
    )


def _in_zip(split: str, archive: Path, read: Callable[[list[zipfile.Path]], Any]) -> Any:
    """What `read` makes of the split's four members of NIST's archive."""
    try:
        with _ShortReads(io.FileIO(archive)) as file, zipfile.ZipFile(file) as members:
            # Read where they are: nothing is extracted, so no name in the archive can reach the file system.
            paths = [
                zipfile.Path(members, f"{ARCHIVE_FOLDER}/{path.name}") for path in download.split_paths(split, Path())
            ]
            missing = [path.at for path in paths if not path.exists()]
            if missing:
                raise UserError(f"{archive} lacks {', '.join(missing)}; give NIST's gzip.zip, whole.")
            for path in paths:
                member = members.getinfo(path.at)
                if member.file_size > idx.MAX_BYTES:
                    raise UserError(f"{path} is too large to be EMNIST; give NIST's gzip.zip.")
                if member.compress_type not in COMPRESSIONS:
                    raise UserError(f"{path} is compressed by another method than NIST's; give NIST's gzip.zip.")
            return read(paths)
    except UserError:
        raise
    # zipfile raises whatever a broken archive makes it stumble over.
    except Exception as error:
        raise UserError(
            f"{archive} cannot be read as a zip ({reason(error)}); give NIST's gzip.zip or a folder of idx files."
        ) from error


class _ShortReads(io.BufferedReader):
    """Bounds what zipfile reads at once, and so the list of members; it finds a longer one truncated."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_DIRECTORY if size is None or size < 0 else min(size, MAX_DIRECTORY))


def _load_idx(split: str, origin: str, paths: Sequence[Path] | Sequence[zipfile.Path]) -> Source:
    facts = SPLITS[split]
    parts = {}
    for name, of_images, of_labels in (("train", *paths[:2]), ("test", *paths[2:])):
        images = idx.read_images(of_images).transpose(0, 2, 1)
        labels = idx.read_labels(of_labels, len(facts.classes), facts.label_offset)
        if len(images) != len(labels):
            raise UserError(
                f"{of_images} holds {len(images):,} images and {of_labels} {len(labels):,} labels; "
                f"give two files that belong together."
            )
        parts[name] = Part(images, labels)
    train, test = (parts[name].images.shape for name in ("train", "test"))
    if train[1:] != test[1:]:
        raise UserError(
            f"{paths[0]} has images of {train[1]} × {train[2]} and {paths[2]} of {test[1]} × {test[2]}; "
            f"give files of one size."
        )
    files = tuple(_source_file(path) for path in paths)
    official = all(file.official for file in files) and (train[0], test[0]) == (facts.train, facts.test)
    return Source(origin, tuple(facts.classes), parts, files, official)


def _source_file(path: Path | zipfile.Path) -> SourceFile:
    size = path.stat().st_size if isinstance(path, Path) else path.root.getinfo(path.at).file_size
    digest = sha256(path)
    official = OFFICIAL_FILES.get(path.name)
    return SourceFile(path.name, size, digest, official is not None and digest == official.sha256)


def _load_images(folder: Path, size: int) -> Source:
    classes = tuple(entry.name for entry in _entries(folder / "train"))
    if len(classes) > MAX_CLASSES:
        raise UserError(
            f"{folder / 'train'} has {len(classes)} classes; at most {MAX_CLASSES} fit into a label's byte."
        )
    parts, files = {}, []
    for name in ("train", "test"):
        parts[name], file = _read_images(folder / name, classes, size)
        files.append(file)
    return Source(str(folder), classes, parts, tuple(files), official=False)


def _entries(folder: Path) -> list[Path]:
    """What is in `folder`, sorted by name on every system alike, without hidden files.

    UserError for a name that no manifest can hold or no message can show.
    """
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in IGNORED]
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}); a folder of images is train/<class>/* and test/<class>/*."
        ) from error
    for path in found:
        if not is_plain(path.name):
            raise UserError(
                f"{folder} holds {path.name!a}, a name with control characters or not in UTF-8; rename it."
            )
    return sorted(found, key=lambda path: path.name)


def _read_images(folder: Path, classes: tuple[str, ...], size: int) -> tuple[Part, SourceFile]:
    paths, labels = _paths(folder), []
    for path in paths:
        name = path.parent.name
        if name not in classes:
            raise UserError(f"{path.parent} is no class of the train images; remove it, or add {name} to train.")
        labels.append(classes.index(name))
    if not paths:
        raise UserError(f"{folder} holds no images; put them there as <class>/*.")
    if len(paths) > idx.MAX_IMAGES or len(paths) * size**2 > MAX_BYTES:
        raise UserError(
            f"{folder} holds {len(paths):,} images; at most {idx.MAX_IMAGES:,} and {MAX_BYTES // 2**30} GiB at "
            f"{size} × {size} are supported: remove some or lower --size."
        )
    images = np.empty((len(paths), size, size), np.uint8)

    def decode(i: int, content: bytes) -> None:
        images[i] = grey(open_image(content), (size, size))

    file = _hashed(folder, paths, decode)
    return Part(images, np.array(labels, np.uint8)), file


def _paths(folder: Path) -> list[Path]:
    """The images of one part, class by class."""
    return [path for entry in _entries(folder) for path in _entries(entry)]


def _hashed(
    folder: Path, paths: Sequence[Path], use: Callable[[int, bytes], None] = lambda i, content: None
) -> SourceFile:
    """A part of a folder of images, over names and contents in order; `use` gets each content too."""
    digest, total = hashlib.sha256(), 0
    for i, path in enumerate(progress(paths, description=f"reading {folder.name}", unit=" images")):
        with readable(path):
            content = read(path)
            use(i, content)
        name = path.relative_to(folder).as_posix().encode()
        digest.update(len(name).to_bytes(8, "big") + name + len(content).to_bytes(8, "big") + content)
        total += len(content)
    return SourceFile(folder.name, total, digest.hexdigest(), False)
