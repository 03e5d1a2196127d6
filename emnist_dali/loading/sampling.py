"""Which sample at which batch, and every random number of the data: pure functions of their keys.

Nothing here has state, so that any batch of any epoch can be made by any rank at any time.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numba import njit

from .. import pipelines  # noqa: F401  (which chooses where numba keeps compiled kernels)
from ..config import Data

_ROUNDS = 8


class Stream(IntEnum):
    """What a random number is for; streams of the same position are independent.

    The values are keys of the generators: another one draws other numbers. 4 and 5 were used once.
    """

    ORDER = 0
    HOLDOUT = 1
    AFFINE = 2
    MIXING = 3
    FOLDS = 6
    CLASS_ORDER = 7
    BLOCK_ORDER = 8
    WINDOW_ORDER = 9
    CORRUPTION = 10


def generator(seed: int, stream: Stream, epoch: int = 0, batch: int = 0) -> np.random.Generator:
    """Philox keyed by (seed, stream) with its counter at (epoch, batch): 2¹²⁸ draws apart from any other."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, batch, epoch]))


def shuffled(samples: int, positions: range, seed: int, epoch: int) -> np.ndarray:
    """The samples at `positions` of an epoch's order, a permutation of 0 … samples − 1: int64.

    A Feistel network over the samples' bits, applied again while it leads outside (Black & Rogaway 2002, «Ciphers
    with Arbitrary Finite Domains»): any place costs the same, and no list is kept, however many samples there are.
    """
    return permuted(samples, np.arange(positions.start, positions.stop), keys(seed, Stream.ORDER, epoch))


def permuted(samples: int, places: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where a permutation of 0 … samples − 1 that is chosen by `keys` takes each of `places` (n,) int64."""
    return _shuffled(samples, places, keys)


@dataclass(frozen=True)
class Classes:
    """Samples in the order of their classes: `samples` (n,) int64; `starts` (C + 1,) int64 says where each of the C
    classes that have any begins, and the last ends."""

    samples: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> "Classes":
        """Of samples with `labels` (n,)."""
        counts = np.bincount(labels)
        return cls(np.argsort(labels, kind="stable"), np.concatenate([[0], np.cumsum(counts[counts > 0])]))


def balanced(classes: Classes, positions: range, seed: int, epoch: int) -> np.ndarray:
    """The samples at `positions` of an epoch that has equally many of every class, to one: int64.

    The samples of a class come in a shuffled order, each once, and then in another, on through all epochs.
    """
    places = shuffled(len(classes.samples), positions, seed, epoch)
    return _balanced(classes.samples, classes.starts, places, epoch, keys(seed, Stream.CLASS_ORDER))


@lru_cache(maxsize=4)  # 20 µs, and every batch of an epoch has the same
def keys(seed: int, stream: Stream, epoch: int = 0, batch: int = 0) -> np.ndarray:
    """What chooses a permutation."""
    return generator(seed, stream, epoch, batch).integers(0, 2**64, _ROUNDS, np.uint64)


@njit(nogil=True, cache=True)
def _balanced(samples, starts, places, epoch, keys):
    classes = starts.size - 1
    out = np.empty(places.size, np.int64)
    for i in range(places.size):
        c = places[i] % classes
        an_epoch = samples.size // classes + (c < samples.size % classes)
        turn, place = divmod(epoch * an_epoch + places[i] // classes, starts[c + 1] - starts[c])
        of_turn = _scrambled(keys + _scrambled(np.uint64(turn)))
        out[i] = samples[starts[c] + _shuffled(starts[c + 1] - starts[c], np.array([place]), of_turn)[0]]
    return out


@njit(nogil=True, cache=True)
def _shuffled(samples, places, keys):
    bits = 10  # halves of fewer bits leave a bias: seen with 5 and 7 samples, in 20,000 epochs
    while samples > 1 << bits:
        bits += 1
    low = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits - bits // 2)) - np.uint64(1)
    out = np.empty(places.size, np.int64)
    for i in range(out.size):
        place = np.uint64(places[i])
        while True:
            upper, lower = place >> low, place & low_mask
            for k in range(0, keys.size, 2):
                upper ^= _scrambled(lower + keys[k]) & high_mask
                lower ^= _scrambled(upper + keys[k + 1]) & low_mask
            place = upper << low | lower
            if place < samples:
                break
        out[i] = place
    return out


@njit(nogil=True, cache=True, inline="always")
def _scrambled(x):
    """The output function of SplitMix64 (Steele, Lea & Flood 2014): every bit of x reaches every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def batches_per_epoch(samples: int, batch_size: int, accumulation: int = 1) -> int:
    """Global micro-batches in a training epoch: whole optimizer steps only, the rest is dropped."""
    return samples // (batch_size * accumulation) * accumulation


def rank_batch(samples: int, batch: int, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The positions in an epoch's order of one rank's slice of global batch `batch`: at most batch_size / world_size.

    Only the last batch of an evaluation is shorter; `batch_size` is a multiple of `world_size`.
    """
    local_batch_size = batch_size // world_size
    start = min(batch * batch_size + rank * local_batch_size, samples)
    return range(start, min(start + local_batch_size, samples))


def holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples with `labels` (n,) into training and validation indices, both sorted int64.

    Stratified: of each class `fraction` (0 … 1) is validation, rounded to whole images; the same for the same
    labels and seed.
    """
    position, counts = _position_in_class(labels, generator(seed, Stream.HOLDOUT))
    held_out = position < np.round(counts * fraction)[labels]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def training_and_validation(labels: np.ndarray, data: Data, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices that a run with these settings trains on and validates on, both sorted int64."""
    if data.folds is None:
        return holdout(labels, data.val_fraction, seed)
    held_out = folds(labels, data.folds, seed) == data.fold - 1
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def folds(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """The fold, 0 … number − 1, of each sample with `labels` (n,): stratified, the same for the same arguments."""
    position, _ = _position_in_class(labels, generator(seed, Stream.FOLDS))
    return position % number


def _position_in_class(labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The position (n,) of each sample among those of its class, shuffled, and the classes' sample counts."""
    shuffled = generator.permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    position = np.empty(len(labels), np.int64)
    position[grouped] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return position, counts
