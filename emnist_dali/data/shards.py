"""Shards (format 1): images packed once into LZ4 records, one folder a split, read by mmap.

A shard is a safetensors file: `records` (uint8, the records end to end), `offsets` (int64, n + 1) and `labels`
(uint8, n). `manifest.json` is written last and names every shard with its size and sha256.
"""

from pathlib import Path

import numpy as np

from ..core import bus_error
from ..core.errors import UserError
from ..core.files import reason
from ..pipelines import fused
from .manifest import Manifest, ShardFile, read_manifest, verify_once


class Shards:
    """One part of a prepared split, mapped: opening costs milliseconds, and memory does not grow with the data.

    Shards that were not seen before as they are now are hashed first. Raises UserError where the part does not exist
    or a shard is missing, of another size, no shard, or not the one that was packed.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part
        self.manifest = read_manifest(folder)
        if part not in self.manifest.shards:
            raise UserError(f"{folder} has no part {part!r}; it has {', '.join(self.manifest.shards)}.")
        files = self.manifest.shards[part]
        self._paths = [folder / file.file for file in files]
        opened = [_open(path, file, self.manifest) for path, file in zip(self._paths, files, strict=True)]
        verify_once(folder, self.manifest, part)
        self._labels = [labels for *_, labels in opened]
        self._records = fused.Records(opened)
        self._stats = [path.stat() for path in self._paths]
        for path, file in zip(self._paths, files, strict=True):
            bus_error.watch(path, file.bytes)

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
