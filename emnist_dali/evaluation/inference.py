"""What a model makes of a loader's images."""

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
from ..runs.predictions import Predictions
from ..runtime import half_images

# A run with --steps is a trial: it is evaluated on this many images.
TRIAL_IMAGES = 2048


def evaluated_members(config: Config, members: np.ndarray) -> np.ndarray:
    """`members`, evenly thinned to TRIAL_IMAGES where the run has --steps."""
    if config.training.steps and len(members) > TRIAL_IMAGES:
        return members[np.linspace(0, len(members) - 1, TRIAL_IMAGES).round().astype(int)]
    return members


def evaluation_loader(config: Config, shards: Shards, stats: Stats, members: np.ndarray) -> Loader:
    """The `evaluated_members` of `shards` in their order."""
    members, data = evaluated_members(config, members), config.data
    backend = data.backend
    if backend == "synthetic":  # of use in training only
        backend = "dali" if config.run.device.startswith("cuda") else "cpu"
    return Loader(
        shards,
        members=members,
        train=False,
        batch_size=data.batch_size,
        size=data.image_size,
        stats=stats,
        seed=config.training.seed,
        backend=backend,
        device=config.run.device,
        half=half_images(config),
        rank=distributed.rank(),
        world=distributed.world_size(),
    )


def predict(
    model: torch.nn.Module,
    loader: Loader,
    autocast: Callable,
    description: str,
    after_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Every image of one pass of `loader`; each rank has its slices, and all get the whole.

    Waits for the device once, at the end.
    """
    model.eval()
    probabilities, true = [], []
    with torch.inference_mode():
        for images, labels in progress(loader, description=description, total=len(loader), unit=" batches"):
            with autocast():
                logits = model(channels_last(images))
            probabilities.append(logits.float().softmax(-1))
            true.append(labels.clone())  # the loader will use its buffer again
            after_batch()
    share = len(true[0])
    everybody = distributed.all_gather((torch.cat(probabilities).cpu(), torch.cat(true).cpu()))
    whole = Predictions(*(_in_order(tensors, share) for tensors in zip(*everybody, strict=True)))
    counted = whole.labels >= 0
    return Predictions(whole.probabilities[counted], whole.labels[counted])


def _in_order(of_ranks: Sequence[torch.Tensor], share: int) -> torch.Tensor:
    """A batch is the slices of all ranks, `share` rows each, one after the other."""
    batches = zip(*(tensor.split(share) for tensor in of_ranks), strict=True)
    return torch.cat([rows for batch in batches for rows in batch])
