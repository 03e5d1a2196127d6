"""A run's best weights on data it was not trained on: `evaluate`, and the end of training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import UserError
from ..core.progress import say
from ..core.text import table
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..loading.validation import validation_images
from ..runs.group import tested_runs
from ..runs.predictions import Predictions
from ..runs.trained_classifier import TrainedClassifier
from ..runtime import autocast
from ..weights import located
from . import inference
from .inference import evaluation_loader, predict
from .metrics import confusions, merged, score

DETAILS = ("top2", "top3", "balanced_accuracy", "calibration_error", "case_merged", "shape_merged")


def evaluate(
    runs: str | Path | Sequence[Path],
    split: str | None = None,
    data_dir: str | Path | None = None,
    validation: bool = False,
) -> dict[str, dict[str, Any]]:
    """Metrics of a run's best weights by part: `test`, and for drawn glyphs `unseen`; or with `validation` that part.

    `builtin` is the model in the package. Of several runs, such as a group's, the mean of their probabilities is
    evaluated, after a line on their accuracies alone. `split` and `data_dir` default to the run's own. The metrics
    are those of `metrics.score`. Raises UserError as `predict_run` and `run_folders`, and if the runs' images differ.

    >>> from emnist_dali import evaluate
    >>> results = evaluate("runs/first")
    >>> 0 <= results["test"]["accuracy"] <= 1
    True
    """
    paths = run_folders(runs)
    all_predictions = [predict_run(path, split, data_dir, validation=validation) for path in paths]
    classes, first = all_predictions[0]
    results = {}
    for part in first:
        for path, (other_classes, predictions) in zip(paths, all_predictions, strict=True):
            same = part in predictions and predictions[part].images.same(first[part].images)
            if other_classes != classes or not same:
                advice = "evaluate them one by one" if validation else "name one split with --split"
                raise UserError(f"{path} has other {part} images than {paths[0]}; {advice}.")
        each = torch.stack([predictions[part].probabilities for _, predictions in all_predictions])
        if len(paths) > 1:
            accuracies = 100 * (each.argmax(-1) == first[part].labels).double().mean(1)
            say(f"{part}: alone the {len(paths)} runs have {accuracies.mean():.2f} ± {accuracies.std():.2f} %.")
        mean = each.mean(0)
        results[part] = score(first[part]._replace(probabilities=mean), classes)
    return results


def run_folders(runs: str | Path | Sequence[Path]) -> list[Path]:
    """The folders of the runs, those of groups included; raises UserError for a group that is not tested whole."""
    paths = [located(runs)] if isinstance(runs, str | Path) else map(located, runs)
    return [folder for path in paths for folder in tested_runs(path)]


def predict_run(
    path: Path,
    split: str | None = None,
    data_dir: str | Path | None = None,
    after_batch: Callable[[], None] = lambda: None,
    validation: bool = False,
) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    """The classes, and the predictions of a run's best weights on the parts that are tested, test first.

    `split` and `data_dir` default to the run's own. With `validation` only the run's validation images are read.
    Raises UserError if the run has no weights yet, held nothing out, or the split has other classes.
    """
    trained, test = open_run(path, split, data_dir)
    config, folder, manifest = trained.config, test.folder, test.manifest
    predictions = {}
    tested = (name for name in manifest.shards if name not in ("train", "validation"))
    for part in ("validation",) if validation else tested:
        shards = test if part == "test" else Shards(folder, "train" if validation else part)
        indices = np.arange(len(shards))
        if validation:
            _, shards, indices = validation_images(shards, config.data, config.training.seed)
            if not len(indices):
                raise UserError(f"{path} held out no validation images; evaluate it without --validation.")
        with evaluation_loader(config, shards, trained.stats, indices) as loader:
            # Not compiled, which takes longer than evaluating some 10⁴ images.
            predicted = predict(trained.model, loader, autocast(config), part, after_batch, trained.calibration)
        predictions[part] = predicted._replace(
            indices=torch.from_numpy(inference.evaluated_indices(config, indices)),
            fingerprint=manifest.part_fingerprint(shards.part),
        )
    return manifest.classes, predictions


def open_run(
    path: Path, split: str | None = None, data_dir: str | Path | None = None
) -> tuple[TrainedClassifier, Shards]:
    """A run's best weights and the test part of its data, or of `split` in `data_dir`.

    Raises UserError if the run has no weights yet, or the split has other classes.
    """
    trained = TrainedClassifier(path)
    config = trained.config
    folder = split_folder(data_dir or config.data.data_dir, split or config.data.split, config.data.source)
    test = Shards(folder, "test")
    classes = test.manifest.classes
    if classes != trained.classes:
        raise UserError(
            f"{folder} has {len(classes)} classes and {path} was trained on {len(trained.classes)} others; "
            "name a split with the run's own classes."
        )
    say(f"Evaluating on {test.manifest}.")
    if config.training.steps:
        say(f"This is a trial with training.steps: at most {inference.TRIAL_IMAGES:,} images of each part.")
    return trained, test


def summary(part: str, result: dict[str, Any]) -> str:
    """A line on one part's result."""
    name = "unseen fonts" if part == "unseen" else part
    return (
        f"{name}: accuracy {100 * result['accuracy']:.2f} %, weighted F1 {result['weighted_f1']:.4f}, "
        f"macro F1 {result['macro_f1']:.4f}, {result['images']:,} images"
    )


def details(result: dict[str, Any]) -> str:
    """The other metrics of a result and its most frequent confusions, as lines of text."""
    percent = {name: f"{100 * result[name]:.2f} %" for name in DETAILS}
    lines = [
        f"  top-2 accuracy {percent['top2']}, top-3 {percent['top3']}, balanced accuracy "
        f"{percent['balanced_accuracy']}, calibration error {percent['calibration_error']}",
    ]
    if alike := merged(list(result["per_class"])):
        lines.append("  " + "; ".join(f"with {of} as one {percent[name]}" for name, of in alike.items()))
    rows = [("true", "predicted", "images", "of the class")]
    for true, predicted, count, share in confusions(result):
        rows.append((true, predicted, f"{count:,}", f"{100 * share:.1f} %"))
    lines += table(rows, right=(2, 3), indent="  ")
    return "\n".join(lines)
