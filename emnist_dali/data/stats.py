"""Mean and standard deviation of the train split as the model sees it, after equalize and resize."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.files import read_json, reason, write_json
from ..core.progress import progress
from ..pipelines.fused import Preprocess
from ..pipelines.pixels import PixelSpec
from .shards import Shards

MIN_STD = 1e-6  # anything smaller is rounding error
_BATCH = 256


@dataclass(frozen=True)
class Stats:
    """Mean and standard deviation of pixels on the scale 0 … 1. Raises ValueError for values that no images have."""

    mean: float
    std: float
    equalize: bool = True  # whether images are equalized first, which the statistics depend on

    def __post_init__(self) -> None:
        if not (_is_number(self.mean) and _is_number(self.std) and 0 <= self.mean <= 1 and MIN_STD <= self.std <= 1):
            raise ValueError("mean or std is not a number on the scale 0 … 1")
        if not isinstance(self.equalize, bool):
            raise ValueError("equalize is not a boolean")

    def pixel_spec(self, shape: tuple[int, int], size: int, *, half: bool = False) -> PixelSpec:
        """Stored images of `shape` (H, W) at `size` pixels, normalized by these; float16 with `half`."""
        dtype = "float16" if half else "float32"
        return PixelSpec(shape=shape, size=size, mean=self.mean, std=self.std, equalize=self.equalize, dtype=dtype)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def statistics(folder: Path, size: int, equalize: bool = True) -> Stats:
    """Statistics of the whole train split in `folder` at (size, size), computed by the fused kernel.

    They are cached beside the manifest, in `stats-<size>.json`, or `stats-<size>-plain.json` without equalization.
    Raises UserError if the cache or a shard is damaged.
    """
    advice = "delete it, and it will be computed again"
    path = folder / f"stats-{size}{'' if equalize else '-plain'}.json"
    if path.exists():
        try:
            stats = Stats(**read_json(path, advice))
            if stats.equalize is not equalize:
                raise ValueError(f"they were computed with equalize={stats.equalize}")
            return stats
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} does not hold valid statistics ({reason(error)}); {advice}.") from error
    stats = _compute(Shards(folder, "train"), size, equalize)
    with suppress(UserError):  # the folder may be read-only: then every run computes them again
        write_json(path, asdict(stats))
    return stats


def _compute(shards: Shards, size: int, equalize: bool) -> Stats:
    pixels = PixelSpec(shape=shards.shape, size=size, mean=0, std=1, equalize=equalize)
    preprocess = Preprocess(pixels, compressed=shards.compressed)
    out = np.empty((_BATCH, size, size), np.float32)
    resize = np.empty((0, 2, 3), np.float32)
    total = squares = 0.0
    with progress(description=f"statistics at {size}×{size}", total=len(shards), unit=" images") as bar:
        for start in range(0, len(shards), _BATCH):
            indices = np.arange(start, min(start + _BATCH, len(shards)))
            shards.preprocess(preprocess, indices, resize, out)
            values = out[: len(indices)].astype(np.float64).ravel()
            total += values.sum()
            squares += values @ values
            bar.update(len(indices))
    count = len(shards) * size * size
    mean = float(total) / count
    std = float(np.sqrt(max(squares / count - mean**2, 0.0)))
    # If all pixels are equal, any scale will do.
    return Stats(mean, std if std >= MIN_STD else 1.0, equalize)
