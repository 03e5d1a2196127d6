"""From a run's weights to its metrics: what `evaluate` prints, and training at its end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import ranks
from .checkpoint import load_weights
from .config import Config
from .device import autocast, compiled, half_images, own_device, resolve
from .errors import UserError
from .files import reason
from .loader import Loader
from .metrics import evaluate
from .model import build_model
from .prepare import split_folder
from .progress import say
from .run_folder import RunFolder
from .shards import Shards
from .stats import Stats

# A run with --steps is a trial: it is evaluated on this many images.
TRIAL_IMAGES = 2048


def evaluation_loader(config: Config, shards: Shards, stats: Stats, members: np.ndarray) -> Loader:
    """`members` of `shards` in their order, unwarped; evenly thinned to TRIAL_IMAGES where the run has --steps."""
    if config.training.steps and len(members) > TRIAL_IMAGES:
        members = members[np.linspace(0, len(members) - 1, TRIAL_IMAGES).round().astype(int)]
    data = config.data
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
        backend=backend,
        device=config.run.device,
        half=half_images(config),
        rank=ranks.rank(),
        world=ranks.world(),
    )


def evaluate_run(
    path: Path,
    split: str | None = None,
    data_dir: str | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Metrics of a run's best weights on every part that was not trained on, by part (test first).

    `split` and `data_dir` default to the run's own. Raises UserError where the run has no weights yet or the
    split has other classes.
    """
    run = RunFolder(path)
    config = own_device(ranks.from_main(run.config))
    if config.run.device.startswith("cuda") and not torch.cuda.is_available():
        auto = {"device": "auto", "amp": "auto", "backend": "auto"}
        say(f"{path} was trained on {config.run.device}, which is not here: evaluating on the CPU.")
        config = resolve(config.override(auto))
    weights, about = ranks.from_main(lambda: load_weights(run.best))
    folder = split_folder(data_dir or config.data.data_dir, split or config.data.split, config.data.source)
    shards = Shards(folder, "test")
    manifest = shards.manifest
    if list(manifest.classes) != about["classes"]:
        raise UserError(
            f"{folder} has {len(manifest.classes)} classes and {path} was trained on {len(about['classes'])} others; "
            "name a split with the run's own classes."
        )
    model = build_model(replace(config.model, pretrained=False, weights=None), len(manifest.classes))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{run.best} does not fit the model of {path} ({reason(error)}); name another run."
        ) from error
    model = compiled(model.to(config.run.device), config)
    say(f"Evaluating on {manifest}.")
    if config.training.steps:
        say(f"This is a trial with --steps: at most {TRIAL_IMAGES:,} images of each part.")
    results = {}
    for part in (name for name in manifest.shards if name != "train"):
        shards = Shards(folder, part)
        with evaluation_loader(config, shards, Stats(*about["stats"]), np.arange(len(shards))) as loader:
            results[part] = evaluate(model, loader, manifest.classes, autocast(config), part, after_batch)
    return results


def summary(part: str, result: dict[str, Any]) -> str:
    """One line for people."""
    name = "unseen (faces that training never sees)" if part == "unseen" else part
    return (
        f"{name}: accuracy {100 * result['accuracy']:.2f} %, weighted F1 {result['weighted_f1']:.4f}, "
        f"macro F1 {result['macro_f1']:.4f}, {result['images']:,} images"
    )
