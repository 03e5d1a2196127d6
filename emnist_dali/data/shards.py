"""Shards (format 1): images packed once into LZ4 records, one folder per split, read through mmap.

A shard is a safetensors file: `records` (uint8, all records concatenated), `offsets` (int64, n + 1) and `labels`
(uint8, n). `manifest.json` is written last and lists every shard with its size and sha256.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..core import bus_error, disk
from ..core.errors import UserError
from ..core.files import reason
from ..core.machine import read_at_random, will_need
from ..pipelines import fused
from .manifest import Manifest, ShardFile, read_manifest, repack, verify_if_changed

# Ranges of samples that are read at once.
READERS = 4
_DTYPES = {"records": np.uint8, "offsets": np.int64, "labels": np.uint8}


class Held(NamedTuple):
    """Consecutive samples in memory, from `start` on: as a shard, with `offsets` into their own `records`."""

    start: int
    records: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray


class _Rows(NamedTuple):
    """Rows `begin` … `end` − 1 of a shard."""

    shard: int
    begin: int
    end: int


class Shards:
    """One part of a prepared split, memory-mapped: it opens in milliseconds, and memory does not grow with the data.

    `part` is "train" or "test", and "unseen" for drawn glyphs. Shards that have changed since they were last verified
    are hashed first.

    Raises UserError if the folder is not prepared, if it has no such part, or if a shard is missing or damaged.

    >>> from emnist_dali import Shards, prepare
    >>> shards = Shards(prepare("digits", source="glyphs"), "train")
    >>> len(shards), shards.shape
    (6000, (28, 28))
    >>> shards.images([0, 1, 2]).shape, shards.labels([0, 1, 2])
    ((3, 28, 28), array([0, 1, 2], dtype=uint8))
    """

    def __init__(self, folder: str | Path, part: str) -> None:
        folder = self.folder = Path(folder)
        self.part = part
        self.manifest = read_manifest(folder)
        if part not in self.manifest.shards:
            raise UserError(f"{folder} has no part {part!r}; it has {', '.join(self.manifest.shards)}.")
        files = self.manifest.shards[part]
        self._paths = [folder / file.file for file in files]
        advice = self._repack = repack(folder, self.manifest)
        opened = [_open(path, file, self.manifest, advice) for path, file in zip(self._paths, files, strict=True)]
        verify_if_changed(folder, self.manifest, part)
        self._mapped = opened
        self._labels = [labels for *_, labels in opened]
        self._records = fused.Records(opened)
        self._starts = np.cumsum([0, *map(len, self._labels)])
        self._stats = [path.stat() for path in self._paths]
        for path, file in zip(self._paths, files, strict=True):
            bus_error.watch(path, file.bytes, self._repack)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.manifest.shape

    @property
    def bytes(self) -> int:
        """The size of the part's files."""
        return sum(file.bytes for file in self.manifest.shards[self.part])

    @property
    def compressed(self) -> bool:
        """Whether records are LZ4 blocks rather than raw pixels."""
        return self.manifest.codec == "lz4"

    def check(self) -> None:
        """Raises UserError if a shard's size or modification time has changed since it was opened."""
        for path, opened in zip(self._paths, self._stats, strict=True):
            try:
                now = path.stat()
            except OSError as error:
                raise UserError(f"{path} was deleted while in use; {self._repack}.") from error
            if (now.st_size, now.st_mtime_ns) != (opened.st_size, opened.st_mtime_ns):
                raise UserError(f"{path} was changed while in use; {self._repack}.")

    def labels(self, indices: ArrayLike | None = None) -> np.ndarray:
        """Labels (n,) uint8 of `indices` (n,), or of the whole part; raises IndexError."""
        if indices is None:
            return np.concatenate(self._labels)
        return self._records.labels(np.asarray(indices, np.int64))

    def images(self, indices: ArrayLike, *, equalize: bool = False) -> np.ndarray:
        """Images (n, H, W) uint8 of `indices` (n,), as stored or equalized; raises UserError for a damaged record."""
        indices = np.asarray(indices, np.int64)
        out = np.empty((len(indices), self.shape[0] * self.shape[1]), np.uint8)
        self._check_decoded(indices, fused.decode(self._records, indices, self.compressed, out, equalize=equalize))
        return out.reshape(-1, *self.shape)

    def preprocess(
        self, preprocess: fused.Preprocess, indices: np.ndarray, matrices: np.ndarray, out: np.ndarray
    ) -> None:
        """Record indices[i] becomes out[i] (S, S) float32 by the fused kernel; raises UserError as `images` does."""
        self._check_decoded(indices, preprocess.run(self._records, indices, matrices, out))

    def records(self, indices: np.ndarray, blocks: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The records of `indices` (n,) as they are stored, concatenated in `blocks` of equally many.

        Returns (blocks, bytes) uint8, undefined after a block's last record, and the records' sizes in bytes,
        (blocks, n / blocks) int32. Raises UserError for a record whose size cannot be right; LZ4 is not decoded.
        """
        pixels = self.shape[0] * self.shape[1]
        # LZ4's upper bound: LZ4_COMPRESSBOUND in lz4.h.
        lowest, highest = (1, pixels + pixels // 255 + 16) if self.compressed else (pixels, pixels)
        sizes = np.empty((blocks, len(indices) // blocks), np.int32)
        failed, records = self._records.gather(indices, sizes, lowest, highest)
        self._check_decoded(indices, failed)
        return records, sizes

    def read_ahead(self, parts: Sequence[range]) -> None:
        """Has the system read the records of ranges of samples into its cache, and does not wait for them."""
        for rows in self._rows(parts):
            records, offsets, labels = self._segment(rows)
            will_need(offsets)
            will_need(labels)
            will_need(records[offsets[0] : offsets[-1]])

    def hold(self, parts: Sequence[range], *, cached: bool = True) -> list[Held]:
        """The records of ranges of samples, read into memory; `cached` as in `disk.read`.

        Where all are needed once, that is faster than mapping them, which costs a fault for the few images of a page:
        in 1 GiB on 2 cores 1,480,000 raw records/s came in windows, and mapped 840,000. Raises UserError where a file
        has changed: unlike what is mapped, it is opened anew.
        """
        self.check()
        rows = list(self._rows(parts))
        with ThreadPoolExecutor(READERS, thread_name_prefix="reader") as readers:
            offsets = list(readers.map(partial(self._read_offsets, cached=cached), rows))
            for (shard, *_), each in zip(rows, offsets, strict=True):
                if not 0 <= each[0] <= each[-1] <= len(self._mapped[shard][0]):
                    raise UserError(f"{self._paths[shard]} is damaged; {self._repack}.")
            memory = disk.allocate([int(each[-1] - each[0]) for each in offsets])
            held = list(readers.map(partial(self._read_rows, cached=cached), rows, offsets, memory))
        self.check()
        return held

    def _read_offsets(self, rows: _Rows, cached: bool) -> np.ndarray:
        (memory,) = disk.allocate([8 * (rows.end - rows.begin + 1)])
        return self._read(rows.shard, "offsets", rows.begin, rows.end + 1, memory, cached)

    def _read_rows(self, rows: _Rows, offsets: np.ndarray, memory: np.ndarray, cached: bool) -> Held:
        records = self._read(rows.shard, "records", int(offsets[0]), int(offsets[-1]), memory, cached)
        (memory,) = disk.allocate([rows.end - rows.begin])
        labels = self._read(rows.shard, "labels", rows.begin, rows.end, memory, cached)
        return Held(int(self._starts[rows.shard]) + rows.begin, records, offsets - offsets[0], labels)

    def _read(self, shard: int, tensor: str, begin: int, end: int, memory: np.ndarray, cached: bool) -> np.ndarray:
        """tensor[begin:end] of a shard, in `memory`."""
        path, dtype = self._paths[shard], np.dtype(_DTYPES[tensor])
        try:
            start, stop = (self._places[shard][tensor] + place * dtype.itemsize for place in (begin, end))
            return disk.read(path, start, stop, memory, cached=cached).view(dtype)
        except (EOFError, ValueError, KeyError) as error:
            raise UserError(f"{path} was changed while in use; {self._repack}.") from error
        except OSError as error:
            raise UserError(f"{path} could not be read ({reason(error)}); {self._repack}.") from error

    @cached_property
    def _places(self) -> list[dict[str, int]]:
        """Where the tensors of each shard begin: after 8 bytes with the size of a header, and that, in JSON."""
        places = []
        for path in self._paths:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            places.append({tensor: 8 + size + header[tensor]["data_offsets"][0] for tensor in _DTYPES})
        return places

    def with_held(self, held: Sequence[Held]) -> "Shards":
        """The same part, whose samples in memory are taken from there."""
        segments, at = [], 0
        for each in sorted(held, key=lambda each: each.start):
            segments += map(self._segment, self._rows([range(at, each.start)]))
            segments.append(each[1:])
            at = each.start + len(each.labels)
        shards = copy(self)
        shards._records = fused.Records([*segments, *map(self._segment, self._rows([range(at, len(self))]))])
        return shards

    def _segment(self, rows: _Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        records, offsets, labels = self._mapped[rows.shard]
        return records, offsets[rows.begin : rows.end + 1], labels[rows.begin : rows.end]

    def _rows(self, parts: Sequence[range]) -> Iterator[_Rows]:
        """Where ranges of samples lie."""
        for part in filter(len, parts):
            first, last = np.searchsorted(self._starts, (part.start, part.stop - 1), side="right") - 1
            for shard in range(first, last + 1):
                inside = np.clip((part.start, part.stop), *self._starts[shard : shard + 2]) - self._starts[shard]
                yield _Rows(shard, *inside.tolist())

    def read_singly(self) -> None:
        """Has a record that is not in the system's cache read alone, without what lies around it."""
        for array in chain.from_iterable(self._mapped):
            read_at_random(array)

    def _check_decoded(self, indices: np.ndarray, failed: int) -> None:
        if failed == fused.SOUND:
            return
        shard = int(np.searchsorted(self._starts, indices[failed], side="right")) - 1
        row = indices[failed] - self._starts[shard]
        raise UserError(f"{self._paths[shard]}: record {row} does not decode to one image; {self._repack}.")


def _open(path: Path, file: ShardFile, manifest: Manifest, advice: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The memory-mapped records, offsets and labels of a shard; `advice` is for messages."""
    # safetensors maps the file only for torch tensors; for numpy arrays it copies.
    from safetensors import safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing; {advice}.")
    size = path.stat().st_size
    if size != file.bytes:
        raise UserError(f"{path} has {size:,} bytes instead of {file.bytes:,}; {advice}.")
    try:
        with safe_open(path, framework="pt") as tensors:
            records, offsets, labels = (tensors.get_tensor(name).numpy() for name in ("records", "offsets", "labels"))
    # Beyond safetensors' own error: torch's for misplaced tensors, numpy's for types that it lacks.
    except Exception as error:
        raise UserError(f"{path} is not a valid shard ({reason(error)}); {advice}.") from error
    dtypes = (records.dtype, offsets.dtype, labels.dtype)
    shapes = (records.ndim, offsets.shape, labels.shape)
    if dtypes != (np.uint8, np.int64, np.uint8) or shapes != (1, (file.samples + 1,), (file.samples,)):
        raise UserError(f"{path} is not a valid shard of {file.samples:,} images; {advice}.")
    if file.samples and labels.max() >= len(manifest.classes):
        raise UserError(
            f"{path} is not a valid shard (label {labels.max()} with {len(manifest.classes)} classes); {advice}."
        )
    return records, offsets, labels
