"""Which images validate a training: the split's own validation part, or some that are held out of train."""

import numpy as np

from ..data.shards import Shards
from .sampling import holdout

PART = "validation"


def validation_images(train: Shards, fraction: float, seed: int) -> tuple[np.ndarray, Shards, np.ndarray]:
    """Indices into `train` to train on, and the shards and indices of the validation images, all sorted int64.

    A validation part of the split wins: then all of `train` is trained on, whatever the `fraction` (0 … 1).
    """
    if PART in train.manifest.shards:
        shards = Shards(train.folder, PART)
        return np.arange(len(train)), shards, np.arange(len(shards))
    training, held_out = holdout(train.labels(), fraction, seed)
    return training, train, held_out
