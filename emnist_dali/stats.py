"""Mean and standard deviation of the train split as the model sees it: after equalize and resize."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .errors import UserError
from .files import read_json, write_json
from .pipelines.fused import Preprocess
from .progress import progress
from .shards import Shards

_BATCH = 256


@dataclass(frozen=True)
class Stats:
    """On the scale 0 … 1."""

    mean: float
    std: float


def statistics(folder: Path, size: int) -> Stats:
    """Of the whole train split at (size, size), through the fused kernel; kept in `stats-<size>.json`."""
    path = folder / f"stats-{size}.json"
    if path.exists():
        return Stats(**read_json(path))
    shards = Shards(folder, "train")
    preprocess = Preprocess(shards.shape, size, mean=0, std=1, compressed=shards.compressed)
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
    pixels = len(shards) * size * size
    mean = total / pixels
    # Blank images only: any scale does.
    stats = Stats(mean, float(np.sqrt(squares / pixels - mean**2)) or 1.0)
    with suppress(UserError):  # a data folder may be read-only; then every run computes them again
        write_json(path, asdict(stats))
    return stats
