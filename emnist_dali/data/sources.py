"""Where images come from: published files, a path of any kind that `find` tells apart, or drawn glyphs."""

import hashlib
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import is_plain, printable, reason, sha256
from ..core.progress import say
from . import csv_rows, download, idx, image_folder, matlab, npz, parquet
from .archive import with_members
from .emnist import ARCHIVE_FOLDER, OFFICIAL_FILES, SPLITS
from .find import Found, find
from .named_sets import DIGESTS, SETS
from .orientation import by_strokes
from .stored import MAX_CLASSES, Stored

SIZE = 28  # of pictures, if none is asked for
# A draw of test images is the same on every machine and in every version.
DRAW_KEY = 18


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
    """`origin` is "official", "glyphs" or the resolved path; `parts` are train and test.

    A source may have the part validation, and glyphs have unseen. `classes` are in label order. `official` means that
    every file is the publisher's, NIST's for EMNIST, none is missing, and the numbers of images are too.
    `orientation` is how the source holds its images, upright or transposed.
    """

    origin: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    files: tuple[SourceFile, ...]
    official: bool
    orientation: str = "upright"


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
    found = find(split, Path(origin(source)))
    paths = found.paths
    if found.kind == "images":
        paths = [path for folder in paths for path in image_folder.image_paths(folder)]
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def content_hashes(split: str, source: str) -> list[str]:
    """The sha256 of each of `Source.files` as `load` would give them for a path, without decoding any image."""
    found = find(split, Path(origin(source)))
    if found.kind == "images":
        return list(map(image_folder.hash_images, found.paths))
    if found.kind == "zip":
        return _with_members(split, found, lambda inside: list(map(sha256, inside.paths)))
    return [sha256(path) for path in found.paths]


def load(
    split: str,
    source: str,
    cache: Path,
    size: int | None = None,
    orientation: str | None = None,
    test_fraction: float | None = None,
) -> Source:
    """Images and labels of `split` from `source`: official (downloaded into `cache`), glyphs, or a path.

    A path is of one of the kinds in docs/data.md. Pictures in folders and in parquet files are resized to
    `size` × `size`, by default 28, and of an animation the first frame is taken. `orientation`, "upright" or
    "transposed", states how the images are stored; without it that is known by the files' hashes, found by the
    strokes of characters or assumed, and a line says which. `test_fraction` of the train images, of each class,
    become the test images of a source that has none. Raises UserError if anything is missing, damaged, inconsistent
    or beyond the limits.
    """
    if source == "glyphs":
        check_split(split)
        from . import glyphs  # needs matplotlib

        classes = SPLITS[split].classes
        parts = {name: Part(images, labels) for name, (images, labels) in glyphs.draw(classes).items()}
        return Source(source, tuple(classes), parts, (), official=False)
    resolved = origin(source)
    if source != "official":
        found = find(split, Path(resolved))
    elif split in SETS:
        paths = download.fetch_set(split, cache / split)
        found = Found("npz", {"train": paths}) if paths[0].suffix == ".npz" else _idx(paths)
    else:
        check_split(split)
        found = _idx(download.fetch(split, cache), ("emnist", split))
    if found.kind == "zip":
        return _with_members(
            split, found, lambda inside: _load(split, resolved, inside, size, orientation, test_fraction)
        )
    return _load(split, resolved, found, size, orientation, test_fraction)


def _idx(paths: list[Path], words: tuple[str, ...] = ()) -> Found:
    return Found("idx", {"train": paths[:2], "test": paths[2:]}, words)


def check_split(split: str) -> None:
    """Raises UserError if there is no published set of that name."""
    if split not in SPLITS:
        raise UserError(
            f"EMNIST has no split {split!r}; choose one of {', '.join(SPLITS)} (official, without --source, are also "
            f"{', '.join(SETS)}; only data of your own can have another name)."
        )


def _with_members(split: str, found: Found, read: Callable[[Found], Any]) -> Any:
    """Calls `read` with what one of NIST's archives holds of `split`."""
    if split not in SPLITS:
        raise UserError(
            f"{found.paths[0]} is read as an archive of NIST's, which has no split {split!r}; unzip it if it is "
            f"not, or choose one of {', '.join(SPLITS)}."
        )
    idx_files = [f"{ARCHIVE_FOLDER}/{path.name}" for path in download.split_paths(split, Path())]

    def as_found(members: list[zipfile.Path]) -> Any:
        kind = "mat" if len(members) == 1 else "idx"
        parts = {"train": members} if kind == "mat" else {"train": members[:2], "test": members[2:]}
        return read(Found(kind, parts, ("emnist", split)))

    return with_members(found.paths[0], [idx_files, [f"matlab/emnist-{split}.mat"]], as_found)


def _load(
    split: str, origin: str, found: Found, size: int | None, orientation: str | None, test_fraction: float | None
) -> Source:
    if found.kind not in ("npz", "mat"):  # which tell their parts only when they are read
        _check_test(origin, found.parts, test_fraction)
    stored, classes, files = _read(split, found, size or SIZE)
    _check_test(origin, stored, test_fraction)
    _check_shapes(origin, stored, size)
    known = _known_set(found, files)
    if known and known != split and split in {*SPLITS, *SETS} and (known, split) != ("mnist", "digits"):
        raise UserError(f"{origin} holds the files of {known}, not of {split}; choose --split {known}.")
    classes, labels = _labels(split, origin, found, known, stored, classes)
    by_hash = "upright" if known else "transposed" if _are_nists(found, files) else None
    if orientation and by_hash not in (None, orientation):
        raise UserError(
            f"{origin} holds its images {by_hash}, as the files' hashes tell; leave out --orientation {orientation}."
        )
    if by_hash:
        orientation, why = by_hash, "known by the files' hashes"
    elif orientation:
        why = "as stated"
    else:
        orientation, why = _orientation(found, stored["train"].images, labels["train"], classes)
    if why:
        say(f"The images of {origin} are stored {orientation} ({why}); they are packed upright.")
    axes = (0, 2, 1) if orientation == "transposed" else (0, 1, 2)
    parts = {part: Part(of.images.transpose(axes), labels[part]) for part, of in stored.items()}
    if test_fraction:
        parts = _draw_test(parts, classes, test_fraction, origin)
    official = all(file.official for file in files) and not test_fraction
    if split in SETS:
        official &= len(files) == len(SETS[split].files)
    if split in SPLITS:
        official &= [len(parts[part].labels) for part in ("train", "test")] == [
            SPLITS[split].train,
            SPLITS[split].test,
        ]
    return Source(origin, classes, parts, files, official, orientation)


def _read(
    split: str, found: Found, size: int
) -> tuple[dict[str, Stored], tuple[str, ...] | None, tuple[SourceFile, ...]]:
    """The parts as stored, the classes where the files name them, and the files."""
    if found.kind == "images":
        folders = {part: folder for part, (folder,) in found.parts.items()}
        stored, classes, read = image_folder.read(folders, size)
        return stored, classes, tuple(SourceFile(part, of.bytes, of.sha256, False) for part, of in read.items())
    classes = None
    if found.kind == "parquet":
        stored, classes = parquet.read(found.parts, size)
    elif found.kind == "npz":
        stored = npz.read(found.paths)
    elif found.kind == "mat":
        stored = matlab.read(found.paths[0])
    elif found.kind == "csv":
        stored = {part: csv_rows.read(path) for part, (path,) in found.parts.items()}
    else:
        stored = {
            part: Stored(idx.read_images(images), str(images), idx.stored_labels(labels), str(labels))
            for part, (images, labels) in found.parts.items()
        }
    return stored, classes, tuple(_source_file(split, path) for path in found.paths)


def _source_file(split: str, path: Path | zipfile.Path) -> SourceFile:
    size = path.stat().st_size if isinstance(path, Path) else path.root.getinfo(path.at).file_size
    digest = sha256(path)
    official = OFFICIAL_FILES.get(path.name)
    is_official = digest == official.sha256 if official else split in SETS and _set_of(path, digest) == split
    return SourceFile(path.name, size, digest, is_official)


def _set_of(path: Path | zipfile.Path, digest: str) -> str | None:
    """The set other than EMNIST that a file with this sha256 is of."""
    return DIGESTS.get(digest) or DIGESTS.get(download.md5(path))


def _known_set(found: Found, files: Sequence[SourceFile]) -> str | None:
    """The set other than EMNIST that all files are of."""
    if found.kind not in ("idx", "npz"):
        return None
    names = {_set_of(path, file.sha256) for path, file in zip(found.paths, files, strict=True)}
    return names.pop() if len(names) == 1 else None


def _are_nists(found: Found, files: Sequence[SourceFile]) -> bool:
    return found.kind == "idx" and all(file.official for file in files)


def _check_test(origin: str, parts: Collection[str], test_fraction: float | None) -> None:
    if "test" not in parts and not test_fraction:
        raise UserError(
            f"{origin} has no test images; add them, or draw them from its train images with --test-fraction 0.1."
        )
    if "test" in parts and test_fraction:
        raise UserError(f"{origin} has test images of its own; leave out --test-fraction.")


def _check_shapes(origin: str, stored: Mapping[str, Stored], size: int | None) -> None:
    train = stored["train"]
    if size and train.images.shape[1:] != (size, size):
        height, width = train.images.shape[1:]
        raise UserError(
            f"The images of {origin} have {height} × {width} pixels; --size is for a folder of images and for "
            "parquet files."
        )
    for part in stored.values():
        if part.images.shape[1:] != train.images.shape[1:]:
            sizes = [" × ".join(map(str, of.images.shape[1:])) for of in (train, part)]
            raise UserError(
                f"{train.images_at} has images of {sizes[0]}, but {part.images_at} of {sizes[1]}; use files with "
                "images of one size."
            )


def _labels(
    split: str,
    origin: str,
    found: Found,
    known: str | None,
    stored: Mapping[str, Stored],
    classes: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes in label order, and the labels (N,) uint8 of each part as indices into them."""
    distinct, offset = np.unique(stored["train"].labels), 0
    if classes is None:
        named = set(found.words) & set(SPLITS) if "emnist" in found.words else set()
        name = known or (split if split in {*SPLITS, *SETS} else next((s for s in SPLITS if s in named), None))
        if name is None:
            return _numbered(origin, stored, distinct)
        if name in SETS:
            classes = SETS[name].classes
        else:
            classes, offset = tuple(SPLITS[name].classes), SPLITS[name].label_offset
            if not named:
                offset = int(distinct[0])
        if not named and not known and len(distinct) != len(classes):
            raise UserError(
                f"{stored['train'].labels_at} has {len(distinct):,} classes, but {name} has {len(classes)}; choose "
                "another --split."
            )
        characters = _characters(stored["train"], distinct) if name in SETS and not known else None
        if characters and characters != classes:
            raise UserError(
                f"{stored['train'].images_at} holds the characters {''.join(characters)}, by their strokes, and not "
                f"{name}; choose another --split."
            )
    elif split in {*SPLITS, *SETS} and len(classes) != (number := len({**SPLITS, **SETS}[split].classes)):
        raise UserError(f"{origin} has {len(classes):,} classes, but {split} has {number}; choose another --split.")
    if len(classes) > MAX_CLASSES or len(set(classes)) != len(classes) or not all(map(is_plain, classes)):
        raise UserError(
            f"{origin} has {len(classes)} classes, but up to {MAX_CLASSES} with different printable names are "
            "supported; rename or merge some."
        )
    return classes, {
        part: idx.class_indices(of.labels, len(classes), offset, of.labels_at) for part, of in stored.items()
    }


def _numbered(
    origin: str, stored: Mapping[str, Stored], distinct: np.ndarray
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """As `_labels`, of a set of which nothing but numbers is known: characters where their strokes say so."""
    if len(distinct) > MAX_CLASSES:
        raise UserError(
            f"{stored['train'].labels_at} has {len(distinct):,} different labels; at most {MAX_CLASSES} are "
            "supported, because a label is one byte."
        )
    labels = {}
    for part, of in stored.items():
        labels[part] = np.searchsorted(distinct, of.labels).clip(max=len(distinct) - 1).astype(np.uint8)
        outside = distinct[labels[part]] != of.labels
        if outside.any():
            raise UserError(
                f"{of.labels_at}: label {of.labels[outside.argmax()]} is not a class of the train images; remove its "
                "images, or add some to train."
            )
    if characters := _characters(stored["train"], distinct):
        say(f"The labels of {origin} are the characters {''.join(characters)}, by their strokes.")
        return characters, labels
    return tuple(f"label {number}" for number in distinct.tolist()), labels


def _characters(train: Stored, distinct: np.ndarray) -> tuple[str, ...] | None:
    """The classes of the EMNIST split whose characters the images with `distinct` labels are, by their strokes."""
    for classes in dict.fromkeys(tuple(info.classes) for info in SPLITS.values()):
        same = len(classes) == len(distinct)
        if same and by_strokes(train.images, np.searchsorted(distinct, train.labels), classes):
            return classes
    return None


def _orientation(found: Found, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> tuple[str, str]:
    """How images are stored, and why that is believed; for a folder of pictures no reason."""
    seen = by_strokes(images, labels, classes)
    if found.kind == "images":
        if seen == "transposed":
            say(f"{found.paths[0]}: the strokes look transposed; if they are, say so by --orientation transposed.")
        return "upright", ""
    if seen:
        return seen, "found by the strokes of the characters"
    if found.kind == "mat" or "emnist" in found.words:
        return "transposed", "assumed, as NIST's are; --orientation upright states otherwise"
    return "upright", "assumed; --orientation transposed states otherwise"


def test_counts(counts: np.ndarray, fraction: float) -> np.ndarray:
    """How many of `counts` (classes,) images `fraction` draws as test images: (classes,) int64."""
    return np.round(np.asarray(counts) * fraction).astype(np.int64)


def _draw_test(parts: Mapping[str, Part], classes: tuple[str, ...], fraction: float, origin: str) -> dict[str, Part]:
    """The parts with a test part drawn from train: of each class the same fraction, the same for the same labels."""
    images, labels = parts["train"].images, parts["train"].labels
    counts = np.bincount(labels)
    shuffled = np.random.Generator(np.random.Philox(key=DRAW_KEY)).random(len(labels)).argsort(kind="stable")
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    position = np.empty(len(labels), np.int64)
    position[grouped] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn_counts = test_counts(counts, fraction)
    if not drawn_counts.any():
        raise UserError(f"--test-fraction {fraction:g} of {origin} leaves no test images; choose a larger one.")
    emptied = np.flatnonzero((counts > 0) & (drawn_counts == counts))
    if emptied.size:
        raise UserError(
            f"--test-fraction {fraction:g} of {origin} leaves no train images of {classes[emptied[0]]}, which has "
            f"{counts[emptied[0]]:,}; choose a smaller one, or add images."
        )
    drawn = position < drawn_counts[labels]
    train, test = (Part(images[which], labels[which]) for which in (~drawn, drawn))
    return {**parts, "train": train, "test": test}
