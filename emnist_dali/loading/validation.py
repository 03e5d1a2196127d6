"""Which images validate a training: a fold, the split's own validation part, or some that are held out of train."""

import numpy as np

from ..config import Data
from ..data.manifest import Manifest
from ..data.shards import Shards
from .sampling import folds, holdout

PART = "validation"


def own_validation(manifest: Manifest, data: Data) -> bool:
    """Whether the split's own validation part validates."""
    return data.folds is None and PART in manifest.shards


def validation_images(train: Shards, data: Data, seed: int) -> tuple[np.ndarray, Shards, np.ndarray]:
    """Indices into `train` to train on, and the shards and indices of the validation images, all sorted int64.

    A fold wins over the split's validation part, with which all of `train` is trained on, and that over
    `data.val_fraction`.
    """
    if data.folds is not None:
        held_out = folds(train.labels(), data.folds, seed) == data.fold - 1
        return np.flatnonzero(~held_out), train, np.flatnonzero(held_out)
    if own_validation(train.manifest, data):
        shards = Shards(train.folder, PART)
        return np.arange(len(train)), shards, np.arange(len(shards))
    training, held_out = holdout(train.labels(), data.val_fraction, seed)
    return training, train, held_out
