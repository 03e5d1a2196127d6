"""Which data lie at a path: contents tell the kind of a file, names its part and what belongs together."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from ..core.files import is_plain
from . import csv_rows, download, idx, matlab, parquet
from .emnist import SPLITS
from .image_files import IMAGE_FORMATS
from .image_folder import IGNORED, entries
from .named_sets import SETS
from .stored import KIND_WORDS, PART_WORDS, PARTS, part_of, words

DEPTH = 4  # folders below the given one: torchvision's EMNIST/raw and Hugging Face's default/train are two
ENTRIES = 10_000  # that are looked at
START = 4096  # bytes of a file by which its kind is told
# Not opened one by one: a folder may hold very many.
IMAGE_SUFFIXES = {f".{name.lower()}" for name in (*IMAGE_FORMATS, "jpg", "tif", "pgm", "heic", "heif")}
# Words of file names that do not tell one data set from another.
COMMON = {*KIND_WORDS, "data", "of", "gz", "csv", "npz", "mat", "parquet", "idx1", "idx2", "idx3", "ubyte", "int"}
READ = "idx, CSV, .npz, .mat or parquet files, gzip.zip or matlab.zip"
ARRANGE = "images as train/<class>/* and test/<class>/*"


@dataclass(frozen=True)
class Found:
    """Data of one kind: idx, csv, npz, mat, parquet, zip (NIST's archives) or images.

    `parts` are the files of each part, train first: of idx images and labels, of images the folder; npz, mat and zip
    hold their parts themselves and stand under train. `words` are those by which file names call the set.
    """

    kind: str
    parts: dict[str, list[Path]]
    words: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """All files, in order."""
        return [path for paths in self.parts.values() for path in paths]


def find(split: str, path: Path) -> Found:
    """The data of `split` at `path`, a file or a folder. Raises UserError if there are none, or several sets."""
    try:
        return _find(split, path)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise UserError(
            f"The source {path} cannot be read ({error.strerror}); check its name and its permissions."
        ) from error


def _find(split: str, path: Path) -> Found:
    if path.is_file():
        return _file(split, path)
    if not path.is_dir():
        raise UserError(
            f"The source {path} does not exist; give official, glyphs, or the path of a file or a folder: {READ}, or "
            f"{ARRANGE}."
        )
    if split in SPLITS:
        official = download.split_paths(split, path)
        if all(map(_existing, official)):
            files = list(map(_existing, official))
            return Found("idx", {"train": files[:2], "test": files[2:]}, ("emnist", split))
        if (path / download.ARCHIVE_NAME).is_file():
            return Found("zip", {"train": [path / download.ARCHIVE_NAME]}, ("emnist",))
        if any(map(_existing, official)):
            raise _lacking(path, official)
    folders = _part_folders(path)
    if "train" in folders and not any(data for folder in folders["train"] for data in _data_files(folder, 0)):
        if double := next((paths for paths in folders.values() if len(paths) > 1), None):
            raise UserError(f"{path} holds {double[0].name} and {double[1].name}; keep one.")
        return Found("images", folders)
    sets: dict[tuple[str, tuple[str, ...]], list[Path]] = {}
    for kind, file in _data_files(path, DEPTH):
        sets.setdefault((kind, _set_words(file.relative_to(path))), []).append(file)
    if key := _choose(split, path, list(sets)):
        if key[0] == "parquet":
            parquet.check_complete(sets[key])
        return Found(key[0], _parts(key[0], path, sets[key]), key[1])
    if _holds_class_folders(path):
        if part := next((entry.name for entry in entries(path) if entry.name.lower() in PART_WORDS), None):
            raise UserError(
                f"{path} holds the folders of classes and {part}; move those of classes into {path / 'train'}."
            )
        return Found("images", {"train": [path]})
    for _, names in sets:
        _check_name(split, path, names)
    if split in SPLITS:
        raise _lacking(path, official)
    raise UserError(f"{path} holds no data that are read here; give {READ}, or {ARRANGE}.")


def _lacking(path: Path, official: list[Path]) -> UserError:
    missing = ", ".join(file.name for file in official if not _existing(file))
    return UserError(f"{path} lacks {missing}; add these files, or {download.ARCHIVE_NAME}, or {ARRANGE}.")


def kind_of(path: Path) -> str | None:
    """The kind of a file by its first bytes; images-idx and labels-idx for the two kinds of idx files."""
    try:
        if not path.is_file():  # reading a pipe or a device may never end
            return None
        with path.open("rb") as file:
            start = file.read(START)
        if start.startswith(idx.GZIP_MAGIC):
            start = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, START)
            return _idx_kind(start)
    except (OSError, zlib.error):
        return None
    if start.startswith(b"PK\3\4") and len(start) >= 30:
        name = start[30 : 30 + struct.unpack_from("<H", start, 26)[0]]
        return "npz" if name.endswith(b".npy") else "zip" if name.startswith((b"gzip/", b"matlab/")) else None
    if start.startswith(parquet.MAGIC):
        return "parquet"
    if start.startswith(matlab.MAGIC):
        return "mat"
    return _idx_kind(start) or ("csv" if csv_rows.is_csv(start, path.suffix) else None)


def _idx_kind(start: bytes) -> str | None:
    if not idx.is_idx(start):
        return None
    return "images-idx" if start[3] == 3 else "labels-idx"


def _file(split: str, path: Path) -> Found:
    try:
        with path.open("rb"):
            kind = kind_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    if kind and kind.endswith("idx"):
        raise UserError(f"{path} is one idx file; give the folder that holds it and the other three.")
    if kind is None:
        if not zipfile.is_zipfile(path) and not path.name.endswith(".zip"):
            raise UserError(f"{path} is of no kind that is read here; give {READ}, or a folder of images.")
        kind = "zip"
    found = _set_words(Path(path.name))
    _check_name(split, path, found)
    return Found(kind, {"train": [path]}, found)


def _check_name(split: str, path: Path, names: tuple[str, ...]) -> None:
    if other := _other(split, names):
        raise UserError(f"{path} holds {other}, not {split}; choose --split {other}.")


def _other(split: str, names: tuple[str, ...]) -> str | None:
    """The published set that words of file names call their data, where the published set `split` is asked for."""
    called = [name for name in SETS if any(word.startswith(name) for word in names)]
    if "emnist" in names:
        called += [name for name in SPLITS if name in names]
    return called[0] if called and split in {*SPLITS, *SETS} and split not in called else None


def _existing(path: Path) -> Path | None:
    """`path`, which ends in .gz, or without that ending, whichever exists."""
    return next((file for file in (path, path.with_suffix("")) if file.is_file()), None)


def _data_files(top: Path, depth: int) -> Iterator[tuple[str, Path]]:
    """Kind and path of the data files in `top` and in its folders, `depth` levels deep.

    Raises UserError where there is more than pictures to look at than ENTRIES.
    """
    folders = [(top, depth)]
    looked_at = 0
    while folders:
        folder, depth = folders.pop()
        for path in _listed(folder):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                continue
            looked_at += 1
            if looked_at > ENTRIES:
                raise UserError(f"{top} holds more than {ENTRIES:,} files and folders; give the folder of the data.")
            if path.is_dir():
                if depth:
                    folders.append((path, depth - 1))
            elif kind := kind_of(path):
                yield "idx" if kind.endswith("idx") else kind, path


def _listed(folder: Path) -> list[Path]:
    """What may be data in a folder; nothing where it may not be listed."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    return [
        path for path in paths if not path.name.startswith(".") and path.name not in IGNORED and is_plain(path.name)
    ]


def _set_words(relative: Path) -> tuple[str, ...]:
    """The words of a path up to the one that names its part, without those that every set has."""
    found = []
    for word in words(str(relative)):
        if word in PART_WORDS:
            break
        if word not in COMMON and not word.isdigit():
            found.append(word)
    return tuple(found)


def _choose(split: str, path: Path, sets: list[tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]] | None:
    """The set, a kind and its words, that is called `split`, or the only one that is not called another."""
    sets = [key for key in sets if not _other(split, key[1])]
    chosen = [key for key in sets if split in key[1]]
    chosen = chosen or [key for key in sets if any(word.startswith(split) for word in key[1])]
    chosen = chosen or sets
    if len(chosen) > 1:
        names = sorted(f"{kind} {' '.join(found)}".strip() for kind, found in chosen)
        raise UserError(f"{path} holds several sets ({', '.join(names)}); give the file or the folder of one.")
    return chosen[0] if chosen else None


def _parts(kind: str, folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files of one set by part. Raises UserError where some are missing, or are there twice."""
    if kind in ("npz", "mat", "zip"):
        return {"train": files}
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(part_of(str(file.relative_to(folder))) or "train", []).append(file)
    if "train" not in found:
        raise UserError(f"{folder} holds no train images, only {files[0].name}; add them, named with «train».")
    parts = {part: found[part] for part in PARTS if part in found}
    if kind == "idx":
        return {part: _images_and_labels(part, folder, paths) for part, paths in parts.items()}
    if kind == "csv":
        for part, paths in parts.items():
            if len(paths) > 1:
                raise UserError(
                    f"{folder} holds {paths[0].name} and {paths[1].name} for {part}; give the folder of one set."
                )
    return parts


def _images_and_labels(part: str, folder: Path, files: list[Path]) -> list[Path]:
    gzipped = {file.name for file in files if file.suffix == ".gz"}
    files = [file for file in files if f"{file.name}.gz" not in gzipped]  # torchvision leaves both
    by_kind = {kind: [file for file in files if kind_of(file) == f"{kind}-idx"] for kind in ("images", "labels")}
    for kind, paths in by_kind.items():
        if len(paths) != 1:
            names = " and ".join(file.name for file in paths[:2]) or "no file"
            raise UserError(f"{folder} holds {names} with {kind} of {part}; give a folder with one such file.")
    return [by_kind["images"][0], by_kind["labels"][0]]


def _part_folders(path: Path) -> dict[str, list[Path]]:
    """The folders of each part that there are."""
    folders = [entry for entry in _listed(path) if entry.name.lower() in PART_WORDS and entry.is_dir()]
    found = {part: [folder for folder in folders if PART_WORDS[folder.name.lower()] == part] for part in PARTS}
    return {part: paths for part, paths in found.items() if paths}


def _holds_class_folders(path: Path) -> bool:
    folders = [entry for entry in entries(path) if entry.is_dir()]
    images = (file for folder in folders for file in entries(folder) if file.suffix.lower() in IMAGE_SUFFIXES)
    return len(folders) > 1 and any(images)
