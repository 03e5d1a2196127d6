"""A model's predictions on the images of a loader."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..config import Config
from ..core import distributed
from ..core.progress import progress
from ..data.shards import Shards
from ..data.stats import Stats
from ..loading.loader import Loader
from ..models.build import channels_last
from ..runs.calibration import UNCALIBRATED, Calibration
from ..runs.predictions import Predictions

# A run with training.steps is a trial: it is evaluated on this many images.
TRIAL_IMAGES = 2048


def evaluated_indices(config: Config, indices: np.ndarray) -> np.ndarray:
    """`indices`, evenly thinned to TRIAL_IMAGES where the run has `training.steps`."""
    if config.training.steps and len(indices) > TRIAL_IMAGES:
        return indices[np.linspace(0, len(indices) - 1, TRIAL_IMAGES).round().astype(int)]
    return indices


def evaluation_loader(config: Config, shards: Shards, stats: Stats, indices: np.ndarray) -> Loader:
    """The `evaluated_indices` of `shards` in order, normalized by `stats`."""
    return Loader.from_config(shards, config, indices=evaluated_indices(config, indices), train=False, stats=stats)


def predict(
    model: torch.nn.Module,
    loader: Loader,
    autocast: Callable,
    description: str,
    after_batch: Callable[[], None] = lambda: None,
    calibration: Calibration = UNCALIBRATED,
) -> Predictions:
    """Predicts every image of one pass of `loader`; each rank has its slices, and all get the whole.

    Waits for the device once, at the end.
    """
    model.eval()
    probabilities, true = [], []
    with torch.inference_mode():
        for images, labels in progress(loader, description=description, total=len(loader), unit=" batches"):
            with autocast():
                logits = model(channels_last(images))
            probabilities.append(calibration(logits.float()))
            true.append(labels.clone())  # the loader reuses its buffer
            after_batch()
    local_batch_size = len(true[0])
    of_ranks = distributed.all_gather((torch.cat(probabilities).cpu(), torch.cat(true).cpu()))
    whole = Predictions(*(_in_order(tensors, local_batch_size) for tensors in zip(*of_ranks, strict=True)))
    counted = whole.labels >= 0
    return Predictions(whole.probabilities[counted], whole.labels[counted])


def _in_order(of_ranks: Sequence[torch.Tensor], local_batch_size: int) -> torch.Tensor:
    """A batch is the slices of all ranks, one after the other."""
    batches = zip(*(tensor.split(local_batch_size) for tensor in of_ranks), strict=True)
    return torch.cat([rows for batch in batches for rows in batch])
