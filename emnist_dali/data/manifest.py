"""The manifest of a prepared split, and whether its shards are still the ones that were packed."""

import hashlib
import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.errors import UserError
from ..core.files import is_plain, is_temporary, read_json, reason, sha256, write_json
from ..core.progress import progress
from .emnist import SPLITS
from .idx import MAX_SIDE
from .sources import MAX_CLASSES, SourceFile

FORMAT = 1
CODECS = ("lz4", "raw")
MANIFEST = "manifest.json"
# Sizes and modification times of the shards when their hashes were last verified on this machine; not part of the
# format.
VERIFIED = ".verified.json"
PARTS = ("train", "test", "validation", "unseen")
# Images of one part; a billion of EMNIST's would be 400 GB.
MAX_SAMPLES = 10**9
DEMO = "demo"  # the folder of --data-dir with the drawn glyphs
_About = Literal["source", "orientation", "test_fraction"]


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """Name, number of images, size in bytes and sha256 of a shard."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a split's folder holds: the content of its manifest.json.

    `origin` is where the images came from: "official", "glyphs" or a path. `shape` is (H, W) of every image. `counts`
    has the number of images of each class, for each part: train, test, validation where the source has one, and
    unseen for glyphs. `files` are the source files with their sha256.
    """

    format: int
    split: str
    origin: str
    official: bool
    codec: str
    shape: tuple[int, int]
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    files: tuple[dict, ...]
    shards: dict[str, tuple[ShardFile, ...]]

    def __str__(self) -> str:
        """One phrase for logs and reports."""
        if self.origin == "glyphs":
            return f"{self.split}, drawn glyphs and not EMNIST"
        if self.origin == "official":
            return (
                f"{self.split}, the official split from NIST"
                if self.split in SPLITS
                else f"{self.split}, as published"
            )
        return f"{self.split} from {self.origin} ({'' if self.official else 'not '}the official split)"

    @property
    def converted(self) -> bool:
        """Whether the images are characters in EMNIST's style; pictures that were only resized are not."""
        return set(self.classes) <= set(SPLITS["byclass"].classes) and not self.resized

    @property
    def resized(self) -> bool:
        """Whether they were pictures: of parquet files, or of a folder, whose `files` are its parts."""
        names = [file["name"] for file in self.files]
        return any(name in PARTS or name.lower().endswith(".parquet") for name in names)

    @property
    def fingerprint(self) -> str:
        """sha256 over the hashes of all shards: equal for equal data."""
        return self._fingerprint(sorted(self.shards))

    def part_fingerprint(self, part: str) -> str:
        """The same of one part: equal for equal images in the same order."""
        return self._fingerprint([part])

    def _fingerprint(self, parts: list[str]) -> str:
        hashes = [shard.sha256 for part in parts for shard in self.shards[part]]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError if the folder is not prepared, has another format, or its manifest is damaged.

    A manifest has at most MAX_CLASSES classes, MAX_SIDE pixels per side and MAX_SAMPLES images per part.
    """
    path = folder / MANIFEST
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise UserError(f"{folder} holds no prepared data; run `emnist-dali prepare` first.")
    remake = f"delete that folder and prepare --split {shlex.quote(folder.name)} from its --source again"
    content = read_json(path, remake)
    try:
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']!r:.20}, but this version reads format {FORMAT}; {remake}."
            )
        manifest = _from_json(content)
        for part, files in manifest.shards.items():
            if [file.file for file in files] != [shard_name(part, i) for i in range(len(files))]:
                raise UserError(f"{path} names files other than the shards of its folder; {remake}.")
        if wrong := _wrong_fields(manifest):
            raise ValueError(f"wrong {', '.join(wrong)}")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a valid manifest ({reason(error)}); {remake}.") from error
    return manifest


def _from_json(content: dict[str, Any]) -> Manifest:
    """JSON's lists become tuples; raises whatever Python raises for other content than a manifest's."""
    return Manifest(
        **{
            **content,
            "shape": tuple(content["shape"]),
            "classes": tuple(content["classes"]),
            "files": tuple(content["files"]),
            "counts": {part: tuple(counts) for part, counts in content["counts"].items()},
            "shards": {part: tuple(ShardFile(**file) for file in files) for part, files in content["shards"].items()},
        }
    )


def _wrong_fields(manifest: Manifest) -> list[str]:
    """Names of fields whose values `pack` cannot have written; TypeError for some values of another type."""
    shards = [shard for part in manifest.shards.values() for shard in part]
    sources = [SourceFile(**file) for file in manifest.files]
    classes = len(manifest.classes)
    valid = {
        "split": is_plain(manifest.split),
        "origin": is_plain(manifest.origin),
        "official": isinstance(manifest.official, bool),
        "codec": manifest.codec in CODECS,
        "shape": len(manifest.shape) == 2 and _are_ints(manifest.shape, 1, MAX_SIDE),
        "classes": 1 <= classes <= MAX_CLASSES
        and all(map(is_plain, manifest.classes))
        and len(set(manifest.classes)) == classes,
        "counts": manifest.counts.keys() == manifest.shards.keys()
        and all(len(counts) == classes and _are_ints(counts, 0, MAX_SAMPLES) for counts in manifest.counts.values()),
        "files": all(
            is_plain(file.name)
            and is_plain(file.sha256)
            and isinstance(file.bytes, int)
            and isinstance(file.official, bool)
            for file in sources
        ),
        "shards": manifest.shards.keys() <= set(PARTS)
        and all(manifest.shards.values())
        and all(is_plain(shard.sha256) for shard in shards)
        and _are_ints((shard.bytes for shard in shards), 1, 2**63)
        and _are_ints((shard.samples for shard in shards), 1, MAX_SAMPLES)
        and all(sum(shard.samples for shard in part) <= MAX_SAMPLES for part in manifest.shards.values()),
    }
    return [field for field, is_valid in valid.items() if not is_valid]


def _are_ints(values: Iterable[Any], lowest: int, highest: int) -> bool:
    return all(isinstance(value, int) and lowest <= value <= highest for value in values)


def shard_name(part: str, i: int) -> str:
    """File name of shard `i` of a part."""
    return f"{part}-{i:05d}.safetensors"


def repack(folder: Path, manifest: Manifest) -> str:
    """Advice in messages about damaged shards: the command that packs them again from where they came."""
    place = Path(os.path.abspath(folder))
    data_dir = place.parents[1] if manifest.origin == "glyphs" else place.parent
    words = ["--split", place.name, "--source", manifest.origin, "--data-dir", str(data_dir), "--force"]
    own = manifest.origin not in ("official", "glyphs")
    if own and manifest.resized:
        words += ["--size", str(manifest.shape[0])]
    if own and (orientation := saved(folder, manifest, "orientation")):
        words += ["--orientation", orientation]
    if own and (fraction := saved(folder, manifest, "test_fraction")):
        words += ["--test-fraction", fraction]
    unknown = own and saved(folder, manifest, "source") is None
    also = ", with the --test-fraction that it had, if any" if unknown else ""
    return f"run `emnist-dali prepare {shlex.join(words)}`{also}"


def verify(folder: Path, manifest: Manifest, parts: Iterable[str] | None = None) -> None:
    """Hashes the shards of `parts` (default: all) and saves their sizes and times for `verify_if_changed`.

    Raises UserError naming the first shard that is missing or was changed.
    """
    shards = [shard for part in parts or manifest.shards for shard in manifest.shards[part]]
    states = {}
    for shard in progress(shards, description="verifying", unit=" shards"):
        path = folder / shard.file
        states[shard.file] = _state(path)
        if not path.is_file() or sha256(path) != shard.sha256:
            raise UserError(f"{path} is not the shard that was packed; {repack(folder, manifest)}.")
    save_verified(folder, manifest, states)


def verify_if_changed(folder: Path, manifest: Manifest, part: str) -> None:
    """Hashes the shards of `part` unless all have the sizes and times that they had when last verified."""
    known = _read_verified(folder, manifest).get("shards", {})
    if any(known.get(shard.file) != _state(folder / shard.file) for shard in manifest.shards[part]):
        verify(folder, manifest, (part,))


def save_verified(
    folder: Path, manifest: Manifest, states: dict[str, list[int] | None] | None = None, **about: str | None
) -> None:
    """Adds `states` of shards (default: of all) and what is `about` their source to VERIFIED, as `saved` gives it."""
    if states is None:
        states = {shard.file: _state(folder / shard.file) for part in manifest.shards.values() for shard in part}
    previous = _read_verified(folder, manifest)
    content = {
        "fingerprint": manifest.fingerprint,
        "shards": {**previous.get("shards", {}), **states},
        **{name: about.get(name) or previous.get(name) for name in get_args(_About)},
    }
    with suppress(UserError):  # the folder may be read-only: then every run hashes the shards again
        write_json(folder / VERIFIED, content)


def saved(folder: Path, manifest: Manifest, name: _About) -> str | None:
    """What is known about the source that was packed: its `listing_digest`, how it held its images, and which share
    of its train images became test images.
    """
    return _read_verified(folder, manifest).get(name)


def _read_verified(folder: Path, manifest: Manifest) -> dict[str, Any]:
    with suppress(UserError):
        content = read_json(folder / VERIFIED)
        if isinstance(content, dict) and content.get("fingerprint") == manifest.fingerprint:
            return content
    return {}


def _state(path: Path) -> list[int] | None:
    """Size in bytes and modification time in ns; None if the file cannot be read."""
    with suppress(OSError):
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    return None


_GENERATED = re.compile(rf"({'|'.join(PARTS)})-\d{{5}}\.safetensors|stats-\d+(-plain)?\.json")


def is_generated(name: str) -> bool:
    """Whether it is a file name that this package writes into a split's folder."""
    return name in (MANIFEST, VERIFIED) or _GENERATED.fullmatch(name) is not None or is_temporary(name)
