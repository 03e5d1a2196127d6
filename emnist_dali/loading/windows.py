"""The order of an epoch for data larger than memory: shuffled in windows, which are read ahead.

Where all samples are shuffled together each record is a read of its own. Here blocks of consecutive samples come in a
shuffled order, and the samples of as many blocks as a window holds are shuffled together; so a disk reads whole
blocks, each once an epoch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import sampling

# Consecutive samples that are read at once: 1.5 MB of LZ4 records, enough for a disk's full rate.
BLOCK = 4096


@dataclass(frozen=True)
class Windows:
    """Windows of `blocks` whole blocks each of `samples` samples; the last one also holds what is left.

    Blocks are counted from a place that is drawn for each epoch, and what does not fill one comes in the last window.
    """

    samples: int
    blocks: int

    @classmethod
    def of(cls, samples: int, size: int) -> "Windows":
        """Windows of about `size` samples, a block or more."""
        return cls(samples, max(size // BLOCK, 1))

    def __len__(self) -> int:
        return max(self.samples // BLOCK // self.blocks, 1)

    def at(self, place: int) -> int:
        """The window of a place in the epoch's order."""
        return min(place // (self.blocks * BLOCK), len(self) - 1)

    def places(self, window: int) -> range:
        start = window * self.blocks * BLOCK
        return range(start, self.samples if window == len(self) - 1 else start + self.blocks * BLOCK)

    def shuffled(self, places: range, seed: int, epoch: int) -> np.ndarray:
        """The samples at `places` of an epoch's order, a permutation of 0 … samples − 1: int64."""
        parts = [np.empty(0, np.int64)]
        while places:
            window = self.places(self.at(places.start))
            here, places = places[: window.stop - places.start], places[window.stop - places.start :]
            keys = sampling.keys(seed, sampling.Stream.WINDOW_ORDER, epoch, self.at(window.start))
            within = sampling.permuted(len(window), np.arange(here.start, here.stop) - window.start, keys)
            starts = self._starts(window.start // BLOCK + within // BLOCK, seed, epoch)
            parts.append((starts + within % BLOCK) % self.samples)
        return np.concatenate(parts)

    def read(self, window: int, seed: int, epoch: int) -> list[range]:
        """The ranges of samples that are the window's."""
        places = self.places(window)
        blocks = np.arange(places.start // BLOCK, -(-places.stop // BLOCK))
        starts = self._starts(blocks, seed, epoch).tolist()
        sizes = np.minimum(BLOCK, self.samples - blocks * BLOCK).tolist()
        ranges = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        inside = [range(part.start, min(part.stop, self.samples)) for part in ranges]
        around = [range(0, part.stop - self.samples) for part in ranges if part.stop > self.samples]
        return inside + around

    def _starts(self, blocks: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The first sample of blocks, given by their places in the epoch's order; what is left keeps the last."""
        whole = blocks < self.samples // BLOCK
        numbers = blocks.copy()
        keys = sampling.keys(seed, sampling.Stream.BLOCK_ORDER, epoch)
        numbers[whole] = sampling.permuted(self.samples // BLOCK, blocks[whole], keys)
        return (_first(self.samples, seed, epoch) + numbers * BLOCK) % self.samples


@lru_cache(maxsize=4)  # as `keys`: every batch of an epoch has the same
def _first(samples: int, seed: int, epoch: int) -> int:
    """Where the blocks of an epoch begin to be counted."""
    return int(sampling.generator(seed, sampling.Stream.BLOCK_ORDER, epoch, 1).integers(samples))
