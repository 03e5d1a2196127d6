"""From a run's weights to its metrics: what `evaluate` prints, and training at its end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Affine, Config
from ..core import distributed
from ..core.errors import UserError
from ..core.progress import say
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..data.stats import Stats
from ..loading import sampling
from ..loading.loader import Loader
from ..runs.classifier import Trained
from ..runtime import autocast, compiled, half_images
from .metrics import Predictions, confusions, predict, score

# A run with --steps is a trial: it is evaluated on this many images.
TRIAL_IMAGES = 2048
# Of test-time augmentation: half of the recipes' warps, and never a flip. Radians; ±1 of 28 pixels.
VIEWS = Affine(rotation=(0.1,), scale=0.06, shear=0.075, translation=1 / 28)
DETAILS = ("top2", "top3", "class_mean", "calibration_error", "case_merged", "shape_merged")


def evaluated_members(config: Config, members: np.ndarray) -> np.ndarray:
    """`members`, evenly thinned to TRIAL_IMAGES where the run has --steps."""
    if config.training.steps and len(members) > TRIAL_IMAGES:
        return members[np.linspace(0, len(members) - 1, TRIAL_IMAGES).round().astype(int)]
    return members


def evaluation_loader(
    config: Config, shards: Shards, stats: Stats, members: np.ndarray, affine: Affine | None = None
) -> Loader:
    """The `evaluated_members` of `shards` in their order, warped by `affine` only."""
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
        affine=affine,
        seed=config.training.seed,
        backend=backend,
        device=config.run.device,
        half=half_images(config),
        rank=distributed.rank(),
        world=distributed.world(),
    )


def predict_run(
    path: Path,
    split: str | None = None,
    data_dir: str | Path | None = None,
    after_batch: Callable[[], None] = lambda: None,
    views: int = 1,
    validation: bool = False,
) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    """The classes, and what a run's best weights make of every part that was not trained on, test first.

    `split` and `data_dir` default to the run's own. With several `views` probabilities are means over the image and
    warps of it by at most VIEWS. With `validation` the part is the run's own held-out images, and no other is read.
    Raises UserError where the run has no weights yet, held nothing out, or the split has other classes.
    """
    trained = Trained(path)
    config = trained.config
    folder = split_folder(data_dir or config.data.data_dir, split or config.data.split, config.data.source)
    shards = Shards(folder, "test")
    manifest = shards.manifest
    if manifest.classes != trained.classes:
        raise UserError(
            f"{folder} has {len(manifest.classes)} classes and {path} was trained on {len(trained.classes)} others; "
            "name a split with the run's own classes."
        )
    model = compiled(trained.model, config)
    say(f"Evaluating on {manifest}.")
    if config.training.steps:
        say(f"This is a trial with --steps: at most {TRIAL_IMAGES:,} images of each part.")
    predictions = {}
    for part in ("validation",) if validation else (name for name in manifest.shards if name != "train"):
        shards = Shards(folder, "train" if validation else part)
        members = np.arange(len(shards))
        if validation:
            members = sampling.holdout(shards.labels(), config.data.val_fraction, config.training.seed)[1]
            if not len(members):
                raise UserError(f"{path} held out no validation images; evaluate it without --validation.")
        seen = []
        with evaluation_loader(config, shards, trained.stats, members) as plain:
            seen.append(predict(model, plain, autocast(config), part, after_batch))
        if views > 1:
            with evaluation_loader(config, shards, trained.stats, members, VIEWS) as warped:
                seen += [predict(model, warped, autocast(config), part, after_batch) for _ in range(views - 1)]
        predictions[part] = Predictions(torch.stack([view.probabilities for view in seen]).mean(0), seen[0].labels)
    return manifest.classes, predictions


def evaluate_runs(
    paths: Sequence[Path],
    split: str | None = None,
    data_dir: str | Path | None = None,
    views: int = 1,
    validation: bool = False,
) -> dict[str, dict[str, Any]]:
    """Metrics of a run by part, or of the mean of several runs' probabilities; the rest as of `predict_run`."""
    everybody = [predict_run(path, split, data_dir, views=views, validation=validation) for path in paths]
    classes, first = everybody[0]
    results = {}
    for part in first:
        labels = first[part].labels
        for path, (of, predictions) in zip(paths, everybody, strict=True):
            if of != classes or part not in predictions or not predictions[part].labels.equal(labels):
                raise UserError(f"{path} has other {part} images than {paths[0]}; name one split with --split.")
        mean = torch.stack([predictions[part].probabilities for _, predictions in everybody]).mean(0)
        results[part] = score(Predictions(mean, labels), classes)
    return results


def summary(part: str, result: dict[str, Any]) -> str:
    """One line for people."""
    name = "unseen (faces that training never sees)" if part == "unseen" else part
    return (
        f"{name}: accuracy {100 * result['accuracy']:.2f} %, weighted F1 {result['weighted_f1']:.4f}, "
        f"macro F1 {result['macro_f1']:.4f}, {result['images']:,} images"
    )


def details(result: dict[str, Any]) -> str:
    """What else a result of `metrics.score` holds, and its most frequent confusions, as lines for people."""
    percent = {name: f"{100 * result[name]:.2f} %" for name in DETAILS}
    lines = [
        f"  in the first 2: {percent['top2']}, in the first 3: {percent['top3']}, mean of the classes: "
        f"{percent['class_mean']}, calibration error: {percent['calibration_error']}",
        f"  with C/c, O/o and the like as one: {percent['case_merged']}, and 0/O, 1/I/L: {percent['shape_merged']}",
        "  true  taken for  images  of the class",
    ]
    for true, predicted, count, share in confusions(result):
        lines.append(f"  {true:<6}{predicted:<11}{count:>6,}{100 * share:>12.1f} %")
    return "\n".join(lines)
