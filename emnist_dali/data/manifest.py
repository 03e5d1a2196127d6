"""What a split's folder holds: the content of its manifest.json, and whether its shards are still what was packed."""

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import is_plain, is_temporary, read_json, reason, sha256, write_json
from ..core.progress import progress
from .idx import MAX_SIDE
from .sources import MAX_CLASSES, SourceFile

FORMAT = 1
CODECS = ("lz4", "raw")
MANIFEST = "manifest.json"
# Sizes and times of the shards when their hashes were last found right: of this machine, and no part of the format.
VERIFIED = ".verified.json"
PARTS = ("train", "test", "unseen")
# Of one part; a billion images of EMNIST would be 400 GB.
MAX_SAMPLES = 10**9


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a split's folder holds: the content of its manifest.json.

    `origin` says where the images came from, `shape` is (H, W) of every image, `counts` the images a class of
    each part (train, test, and unseen for glyphs), `files` the source files with their sha256.
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
            return f"{self.split}, the official split from NIST"
        return f"{self.split} from {self.origin} ({'' if self.official else 'not '}the official split)"

    @property
    def converted(self) -> bool:
        """Whether the images are EMNIST's or drawn like them, and not a folder of images, named by its parts."""
        return not any(file["name"] in PARTS for file in self.files)

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' hashes: equal for equal data."""
        hashes = [shard.sha256 for part in sorted(self.shards) for shard in self.shards[part]]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError where the folder is not prepared, of another format, or its manifest is broken.

    At most MAX_CLASSES classes, MAX_SIDE pixels a side, MAX_SAMPLES images a part.
    """
    path = folder / MANIFEST
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise UserError(f"{folder} holds no prepared data; run `emnist-dali prepare` first.")
    content = read_json(path, "remove that folder and prepare it anew")
    try:
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']!r:.20}, this version reads {FORMAT}; "
                "remove that folder and prepare it anew."
            )
        manifest = Manifest(
            **{
                **content,
                "shape": tuple(content["shape"]),
                "classes": tuple(content["classes"]),
                "files": tuple(content["files"]),
                "counts": {part: tuple(counts) for part, counts in content["counts"].items()},
                "shards": {
                    part: tuple(ShardFile(**file) for file in files) for part, files in content["shards"].items()
                },
            }
        )
        for part, files in manifest.shards.items():
            if [file.file for file in files] != [shard_name(part, i) for i in range(len(files))]:
                raise UserError(
                    f"{path} names files outside its folder's shards; remove that folder and prepare it anew."
                )
        if wrong := _wrong_fields(manifest):
            raise ValueError(f"wrong {', '.join(wrong)}")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no manifest of this project ({reason(error)}); remove that folder and prepare it anew."
        ) from error
    return manifest


def _wrong_fields(manifest: Manifest) -> list[str]:
    """Names of the fields whose values no `pack` has written; TypeError where they are not even of their kind."""
    files = [file for part in manifest.shards.values() for file in part]
    sources = [SourceFile(**file) for file in manifest.files]
    classes = len(manifest.classes)
    sound = {
        "split": is_plain(manifest.split),
        "origin": is_plain(manifest.origin),
        "official": isinstance(manifest.official, bool),
        "codec": manifest.codec in CODECS,
        "shape": len(manifest.shape) == 2 and _are_numbers(manifest.shape, 1, MAX_SIDE),
        "classes": 1 <= classes <= MAX_CLASSES
        and all(map(is_plain, manifest.classes))
        and len(set(manifest.classes)) == classes,
        "counts": manifest.counts.keys() == manifest.shards.keys()
        and all(len(of) == classes and _are_numbers(of, 0, MAX_SAMPLES) for of in manifest.counts.values()),
        "files": all(
            is_plain(file.name)
            and is_plain(file.sha256)
            and isinstance(file.bytes, int)
            and isinstance(file.official, bool)
            for file in sources
        ),
        "shards": manifest.shards.keys() <= set(PARTS)
        and all(manifest.shards.values())
        and all(is_plain(file.sha256) for file in files)
        and _are_numbers((file.bytes for file in files), 1, 2**63)
        and _are_numbers((file.samples for file in files), 1, MAX_SAMPLES)
        and all(sum(file.samples for file in part) <= MAX_SAMPLES for part in manifest.shards.values()),
    }
    return [field for field, is_sound in sound.items() if not is_sound]


def _are_numbers(values: Iterable[Any], lowest: int, highest: int) -> bool:
    return all(isinstance(value, int) and lowest <= value <= highest for value in values)


def shard_name(part: str, i: int) -> str:
    return f"{part}-{i:05d}.safetensors"


def verify(folder: Path, manifest: Manifest, parts: Iterable[str] | None = None) -> None:
    """Hashes every shard, or those of `parts`, and remembers their sizes and times.

    Raises UserError naming the first that is missing or is not what was packed.
    """
    files = [file for part in parts or manifest.shards for file in manifest.shards[part]]
    found = {}
    for file in progress(files, description="verifying", unit=" shards"):
        path = folder / file.file
        found[file.file] = _state(path)
        if not path.is_file() or sha256(path) != file.sha256:
            raise UserError(f"{path} is not the shard that was packed; prepare it anew with --force.")
    remember(folder, manifest, found)


def verify_once(folder: Path, manifest: Manifest, part: str) -> None:
    """`verify` the shards of `part`, unless all have the sizes and times that they had when they were found right."""
    known = _remembered(folder, manifest).get("shards", {})
    if any(known.get(file.file) != _state(folder / file.file) for file in manifest.shards[part]):
        verify(folder, manifest, (part,))


def remember(
    folder: Path, manifest: Manifest, shards: dict[str, list[int] | None] | None = None, source: str | None = None
) -> None:
    """Adds to VERIFIED the states of `shards`, of all without it, and the `source.listing` that was packed."""
    if shards is None:
        shards = {file.file: _state(folder / file.file) for part in manifest.shards.values() for file in part}
    before = _remembered(folder, manifest)
    content = {
        "fingerprint": manifest.fingerprint,
        "shards": {**before.get("shards", {}), **shards},
        "source": source or before.get("source"),
    }
    with suppress(UserError):  # a data folder may be read-only; then every run hashes them again
        write_json(folder / VERIFIED, content)


def remembered_source(folder: Path, manifest: Manifest) -> str | None:
    """The `source.listing` of the files that were packed, where it is known."""
    return _remembered(folder, manifest).get("source")


def _remembered(folder: Path, manifest: Manifest) -> dict[str, Any]:
    with suppress(UserError):
        content = read_json(folder / VERIFIED)
        if isinstance(content, dict) and content.get("fingerprint") == manifest.fingerprint:
            return content
    return {}


def _state(path: Path) -> list[int] | None:
    """Size in bytes and modification time in ns."""
    with suppress(OSError):
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    return None


_OWN = re.compile(rf"({'|'.join(PARTS)})-\d{{5}}\.safetensors|stats-\d+(-plain)?\.json")


def is_own(name: str) -> bool:
    """Whether `pack` and those who read its folder give a file such a name."""
    return name in (MANIFEST, VERIFIED) or _OWN.fullmatch(name) is not None or is_temporary(name)
