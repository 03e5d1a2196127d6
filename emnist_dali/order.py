"""Which sample at which batch, and every random number of the data: pure functions of their keys.

Nothing here has state, so that any batch of any epoch can be made by any rank, at once or again.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random number is for; streams of the same position are independent."""

    ORDER = 0
    HOLDOUT = 1
    AFFINE = 2
    MIXING = 3


def generator(seed: int, stream: Stream, epoch: int = 0, batch: int = 0) -> np.random.Generator:
    """Philox keyed by (seed, stream) with its counter at (epoch, batch): 2¹²⁸ draws apart from any other."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, batch, epoch]))


def permutation(members: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The samples `members` (n,) int64 in the order of one epoch."""
    return generator(seed, Stream.ORDER, epoch).permutation(members)


def batches_per_epoch(samples: int, batch_size: int, accumulation: int = 1) -> int:
    """Global micro-batches in a training epoch: whole optimizer steps only, the rest is dropped."""
    return samples // (batch_size * accumulation) * accumulation


def rank_batch(order: np.ndarray, batch: int, batch_size: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Rank `rank`'s contiguous slice of global batch `batch` out of `order` (n,): (batch_size / world,) at most.

    Only the last batch of an evaluation is shorter; `batch_size` is a multiple of `world`.
    """
    share = batch_size // world
    start = batch * batch_size + rank * share
    return order[start : min(start + share, (batch + 1) * batch_size)]


def holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples with `labels` (n,) into training and validation indices, both sorted int64.

    Stratified: of each class `fraction` (0 … 1) is validation, rounded to whole images; the same for the same
    labels and seed.
    """
    shuffled = generator(seed, Stream.HOLDOUT).permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = place < np.repeat(np.round(counts * fraction), counts)
    return np.sort(grouped[~chosen]), np.sort(grouped[chosen])
