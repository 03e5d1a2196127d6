"""Shards (format 1): images packed once into LZ4 records, one folder a split, read by mmap.

A shard is a safetensors file: `records` (uint8, the records end to end), `offsets` (int64, n + 1) and `labels`
(uint8, n). `manifest.json` is written last and names every shard with its size and sha256.
"""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np

from .errors import UserError
from .files import is_plain, read_json, reason, sha256, write_json
from .idx import MAX_SIDE
from .pipelines import fused
from .progress import progress
from .source import MAX_CLASSES, Part, Source, SourceFile

FORMAT = 1
CODECS = ("lz4", "raw")
MANIFEST = "manifest.json"
# 131,072 EMNIST images are 48 MB of LZ4: a shard is held in memory while it is written.
SHARD_SAMPLES = 1 << 17
# Shards of larger images hold fewer: several times this is taken while one is written.
SHARD_BYTES = 100 * 2**20
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


def pack(source: Source, split: str, folder: Path, codec: str = "lz4") -> Manifest:
    """Writes `source` into `folder`, which appears only when it is whole; an older one is replaced then."""
    if codec not in CODECS:
        raise UserError(f"There is no codec {codec!r}; take one of {', '.join(CODECS)}.")
    if len(source.classes) > MAX_CLASSES:
        raise UserError(f"{source.origin} has {len(source.classes)} classes; a shard holds at most {MAX_CLASSES}.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        shards = {name: _pack_part(name, part, partial, codec) for name, part in source.parts.items()}
        manifest = Manifest(
            format=FORMAT,
            split=split,
            origin=source.origin,
            official=source.official,
            codec=codec,
            shape=source.parts["train"].images.shape[1:],
            classes=source.classes,
            counts={
                name: tuple(np.bincount(part.labels, minlength=len(source.classes)).tolist())
                for name, part in source.parts.items()
            },
            files=tuple(asdict(file) for file in source.files),
            shards=shards,
        )
        write_json(partial / MANIFEST, asdict(manifest))
        _replace_folder(partial, folder)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error}); free space there or name another --data-dir."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _pack_part(name: str, part: Part, folder: Path, codec: str) -> tuple[ShardFile, ...]:
    from safetensors.numpy import save

    files = []
    samples = max(1, min(SHARD_SAMPLES, SHARD_BYTES // part.images[0].size))
    with progress(description=f"packing {name}", total=len(part.labels), unit=" images") as bar:
        for start in range(0, len(part.labels), samples):
            images = np.ascontiguousarray(part.images[start : start + samples])
            records = [image.tobytes() for image in images]
            if codec == "lz4":
                records = [lz4.block.compress(record, store_size=False) for record in records]
            offsets = np.zeros(len(records) + 1, np.int64)
            np.cumsum([len(record) for record in records], out=offsets[1:])
            path = folder / _shard_name(name, len(files))
            tensors = {
                "records": np.frombuffer(b"".join(records), np.uint8),
                "offsets": offsets,
                "labels": part.labels[start : start + samples].astype(np.uint8),
            }
            path.write_bytes(save(tensors))  # safetensors' own `save_file` lets nobody else read it
            files.append(
                ShardFile(file=path.name, samples=len(records), bytes=path.stat().st_size, sha256=sha256(path))
            )
            bar.update(len(records))
    return tuple(files)


def _shard_name(part: str, i: int) -> str:
    return f"{part}-{i:05d}.safetensors"


def _replace_folder(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError where the folder is not prepared, of another format, or its manifest is broken.

    At most MAX_CLASSES classes, MAX_SIDE pixels a side, MAX_SAMPLES images a part.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} holds no prepared data; run `emnist-dali prepare` first.")
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']!r:.20}, this version reads {FORMAT}; prepare it anew."
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
            if [file.file for file in files] != [_shard_name(part, i) for i in range(len(files))]:
                raise UserError(f"{path} names files outside its folder's shards; prepare it anew with --force.")
        if wrong := _wrong_fields(manifest):
            raise ValueError(f"wrong {', '.join(wrong)}")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no manifest of this project ({reason(error)}); prepare it anew with --force."
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
        "classes": 1 <= classes <= MAX_CLASSES and all(map(is_plain, manifest.classes)),
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


def verify(folder: Path, manifest: Manifest) -> None:
    """Hashes every shard; raises UserError naming the first that is missing or is not what was packed."""
    files = [file for part in manifest.shards.values() for file in part]
    for file in progress(files, description="verifying", unit=" shards"):
        path = folder / file.file
        if not path.is_file() or sha256(path) != file.sha256:
            raise UserError(f"{path} is not the shard that was packed; prepare it anew with --force.")


class Shards:
    """One part of a prepared split, mapped: opening costs milliseconds, and memory does not grow with the data.

    Raises UserError where the part does not exist or a shard is missing, of another size, or no shard.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part
        self.manifest = read_manifest(folder)
        if part not in self.manifest.shards:
            raise UserError(f"{folder} has no part {part!r}; it has {', '.join(self.manifest.shards)}.")
        files = self.manifest.shards[part]
        self._paths = [folder / file.file for file in files]
        opened = [_open(path, file, self.manifest) for path, file in zip(self._paths, files, strict=True)]
        self._labels = [labels for *_, labels in opened]
        self._records = fused.Records(opened)
        self._stats = [path.stat() for path in self._paths]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def shape(self) -> tuple[int, int]:
        return self.manifest.shape

    @property
    def compressed(self) -> bool:
        return self.manifest.codec == "lz4"

    def check(self) -> None:
        """Raises UserError where a shard's size or modification time is not what it was on opening."""
        for path, opened in zip(self._paths, self._stats, strict=True):
            try:
                now = path.stat()
            except OSError as error:
                raise UserError(f"{path} has gone while it was in use; prepare it anew.") from error
            if (now.st_size, now.st_mtime_ns) != (opened.st_size, opened.st_mtime_ns):
                raise UserError(f"{path} has changed while it was in use; prepare it anew with --force.")

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """uint8 labels of `indices` (n,), or of the whole part."""
        return np.concatenate(self._labels) if indices is None else self._records.labels(indices)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """(n, H, W) uint8: the records of `indices`, decoded."""
        out = np.empty((len(indices), self.shape[0] * self.shape[1]), np.uint8)
        self._check_decoded(indices, fused.decode(self._records, indices, self.compressed, out))
        return out.reshape(-1, *self.shape)

    def preprocess(
        self, preprocess: fused.Preprocess, indices: np.ndarray, matrices: np.ndarray, out: np.ndarray
    ) -> None:
        """Record indices[i] becomes out[i] (S, S) float32 through the fused kernel."""
        self._check_decoded(indices, preprocess.run(self._records, indices, matrices, out))

    def records(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The records of `indices` (n,) end to end, uint8, and the bytes of each, (n,) int64."""
        sizes = self._records.sizes(indices)
        pixels = self.shape[0] * self.shape[1]
        # The most that LZ4 makes of an image: lz4.h, LZ4_COMPRESSBOUND.
        least, most = (0, pixels + pixels // 255 + 16) if self.compressed else (pixels, pixels)
        wrong = np.flatnonzero((sizes < least) | (sizes > most))
        self._check_decoded(indices, wrong[0] if len(wrong) else fused.SOUND)
        ends = np.cumsum(sizes)
        out = np.empty(ends[-1] if len(ends) else 0, np.uint8)
        self._records.gather(indices, ends, out)
        return out, sizes

    def _check_decoded(self, indices: np.ndarray, failed: int) -> None:
        if failed == fused.SOUND:
            return
        samples = [file.samples for file in self.manifest.shards[self.part]]
        shard = int(np.searchsorted(np.cumsum(samples), indices[failed], side="right"))
        row = indices[failed] - sum(samples[:shard])
        raise UserError(
            f"{self._paths[shard]}: record {row} does not decode to one image; prepare it anew with --force."
        )


def _open(path: Path, file: ShardFile, manifest: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mapped records, offsets and labels of a shard."""
    # safetensors' torch view maps the file; its numpy view copies it.
    from safetensors import safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing; prepare it anew with --force.")
    size = path.stat().st_size
    if size != file.bytes:
        raise UserError(f"{path} has {size} bytes and should have {file.bytes}; prepare it anew with --force.")
    try:
        with safe_open(path, framework="pt") as tensors:
            records, offsets, labels = (tensors.get_tensor(name).numpy() for name in ("records", "offsets", "labels"))
    # Beside safetensors' own error: what torch says of a misplaced tensor, and numpy of a type that it lacks.
    except Exception as error:
        raise UserError(f"{path} is no shard ({reason(error)}); prepare it anew with --force.") from error
    dtypes = (records.dtype, offsets.dtype, labels.dtype)
    shapes = (records.ndim, offsets.shape, labels.shape)
    if dtypes != (np.uint8, np.int64, np.uint8) or shapes != (1, (file.samples + 1,), (file.samples,)):
        raise UserError(f"{path} is no shard of {file.samples} images; prepare it anew with --force.")
    if file.samples and labels.max() >= len(manifest.classes):
        raise UserError(
            f"{path} has label {labels.max()} with {len(manifest.classes)} classes; prepare it anew with --force."
        )
    return records, offsets, labels
