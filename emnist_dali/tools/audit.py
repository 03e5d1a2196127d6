"""Finds training images whose labels look wrong, by out-of-fold probabilities and confident learning (cleanlab).

Northcutt, Jiang & Chuang 2021, «Confident Learning: Estimating Uncertainty in Dataset Labels», arXiv:1911.00068.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import Config, current
from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import parse_json, remove_temporaries, write_atomic, write_json
from ..core.locks import LOCK, Lock
from ..core.progress import progress, say
from ..data.emnist import CASE_ALIKE, SHAPE_ALIKE
from ..data.prepare import prepare
from ..data.shards import Shards
from ..evaluation.inference import predict
from ..evaluation.metrics import groups, merged
from ..loading import sampling
from ..loading.loader import Loader
from ..reports.html import render
from ..runtime import autocast, resolve
from ..training.build import build_training

GALLERY = 500  # images
# Out-of-fold error above which the models contradict most labels. Of 9,400 Balanced images with 5 % of wrong labels,
# 14 % of those listed were wrong at an error of 41 %, 10 % at 49 %, 7 % at 63 % and 5 %, as by chance, at 80 %
# (logistic regressions on ever fewer images).
MAX_ERROR = 0.5
RESULTS = LIST, PAGE, SUMMARY = "issues.csv", "gallery.html", "summary.json"  # replaced in an audit's folder


class Issue(NamedTuple):
    """A training image whose label looks wrong: classes, and their probabilities."""

    image: int
    given: str
    predicted: str
    given_probability: float
    predicted_probability: float


def audit(config: Config, folds: int, out: Path) -> dict[str, Any]:
    """Predicts each of `folds` folds after training on the others; writes issues.csv, gallery.html and summary.json.

    Returns the summary; its issues_apart, between characters that can be told apart, are None where all can be. Folds
    that `out` already holds are not trained again, and the test split is not read. Raises UserError if cleanlab is
    missing, a fold there is of other data or settings, or `out` is in use or not an audit's.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise UserError(f"cleanlab could not be imported ({error}); pip install 'emnist-dali[audit]'.") from error
    config = resolve(config)
    folder = prepare(config.data.split, config.data.source, config.data.data_dir)
    shards = Shards(folder, "train")
    labels, classes = shards.labels(), shards.manifest.classes
    config = with_steps(config, len(labels) - len(labels) // folds)
    with _claim(out):
        probabilities = _probabilities(config, shards, folds, out)
        # By ascending probability of the given label.
        indices = find_label_issues(
            labels,
            probabilities,
            filter_by="confident_learning",
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
        predicted = probabilities.argmax(1)
        wrong = predicted != labels
        apart = None
        if merged(classes):
            group = np.array(groups(CASE_ALIKE | SHAPE_ALIKE, classes))
            apart = int((group[labels[indices]] != group[predicted[indices]]).sum())
        summary = {
            "data": str(shards.manifest),
            "recipe": config.recipe,
            "folds": folds,
            "seed": config.training.seed,
            "images": len(labels),
            "out_of_fold_error": float(wrong.mean()),
            "issues": len(indices),
            "issues_share": len(indices) / len(labels),
            "issues_apart": apart,
            "issues_apart_share": None if apart is None else apart / len(labels),
            "errors_that_are_issues": float(wrong[indices].sum() / max(wrong.sum(), 1)),
        }
        issues = [
            Issue(int(i), classes[label], classes[predicted[i]], probabilities[i, label], probabilities[i].max())
            for i, label in zip(indices, labels[indices], strict=True)
        ]
        _write_list(out / LIST, issues)
        _write_gallery(out / PAGE, issues[:GALLERY], shards, summary)
        write_json(out / SUMMARY, summary)
    return summary


def _claim(out: Path) -> Lock:
    """The lock of an audit's folder, which is created if missing; UserError if it holds other files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = [] if (out / LOCK).exists() else [name for name in RESULTS if os.path.lexists(out / name)]
    except OSError as error:
        raise UserError(f"{out} could not be created ({error.strerror}); choose another --out.") from error
    if foreign:
        raise UserError(
            f"{out / foreign[0]} already exists, and not from an audit; choose another --out, or move it elsewhere."
        )
    lock = Lock(out / LOCK, out)
    remove_temporaries(out)
    return lock


def with_steps(config: Config, images: int) -> Config:
    """`config`, with its batch halved as often as an epoch of `images` needs to have 8 steps.

    The command has no option for the batch, and few images would fill none.
    """
    while config.data.batch_size > 2 and config.data.batch_size * config.training.accumulation > images // 8:
        config = config.override({"batch_size": config.data.batch_size // 2})
    return config


def _probabilities(config: Config, shards: Shards, folds: int, out: Path) -> np.ndarray:
    """(N, classes) float32, each image's from a model that was trained on the other folds."""
    labels = shards.labels()
    fold_of = sampling.folds(labels, folds, config.training.seed)
    identity = {"fingerprint": shards.manifest.fingerprint, "folds": folds, **config.identity()}
    probabilities = np.empty((len(labels), len(shards.manifest.classes)), np.float32)
    for fold in progress(range(folds), description="audit", unit=" folds"):
        held_out = np.flatnonzero(fold_of == fold)
        path = out / f"fold-{fold}-of-{folds}.safetensors"
        if not path.exists():
            say(f"Fold {fold + 1} of {folds}: training on the other {len(labels) - len(held_out):,} images.")
            predicted = _out_of_fold(config, shards, np.flatnonzero(fold_of != fold), held_out)
            about = {"about": json.dumps(identity)}
            write_atomic(path, tensor_files.encode({"probabilities": predicted}, about))
        probabilities[held_out] = _read_fold(path, identity, probabilities[held_out].shape)
    return probabilities


def _read_fold(path: Path, identity: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """The probabilities, of `shape`, of a fold; older folds have no sha256."""
    tensors, metadata = tensor_files.decode(path, "a fold")
    probabilities = tensors.get("probabilities")
    if (
        probabilities is None
        or probabilities.dtype != torch.float32
        or not ((probabilities >= 0) & (probabilities <= 1)).all()
    ):
        raise UserError(f"{path} does not hold a fold (no probabilities from 0 to 1); remove it.")
    if not _matches(metadata.get("about"), identity) or probabilities.shape != shape:
        raise UserError(f"{path} is of other data or settings; choose another --out or remove it.")
    return probabilities.numpy()


def _matches(about: str | None, identity: dict[str, Any]) -> bool:
    """Whether a fold's metadata, perhaps of an older version, describe `identity`."""
    try:
        return current(parse_json(about)) == identity
    except (AttributeError, TypeError, ValueError, RecursionError):
        return False


def _out_of_fold(config: Config, shards: Shards, indices: np.ndarray, held_out: np.ndarray) -> torch.Tensor:
    """Probabilities (held_out, classes) after a training on `indices`."""
    with build_training(config, shards, indices=indices) as training:
        trainer = training.trainer
        while not trainer.done:
            entry = trainer.train_epoch(training.loader)
            say(f"epoch {entry['epochs_done']}/{config.training.epochs}  loss {entry['loss']:.4f}")
            trainer.begin(trainer.epoch + 1)
    # Not `evaluation_loader`: every held-out image is looked at, even in a trial.
    with Loader.from_config(shards, config, indices=held_out, train=False) as loader:
        return predict(trainer.trained, loader, autocast(config), "fold").probabilities


def _write_list(path: Path, issues: list[Issue]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "given", "predicted", "probability of the given", "probability of the predicted"))
    writer.writerows((*issue[:3], f"{issue[3]:.4f}", f"{issue[4]:.4f}") for issue in issues)
    write_atomic(path, text.getvalue().encode())


def _write_gallery(path: Path, issues: list[Issue], shards: Shards, summary: dict[str, Any]) -> None:
    images = shards.images(np.array([issue.image for issue in issues], np.int64))
    items = [{"image": image, "issue": issue} for image, issue in zip(images, issues, strict=True)]
    write_atomic(path, render("audit.html", title="Label issues", items=items, warning=warning(summary), **summary))


def describe(summary: dict[str, Any]) -> str:
    """The summary of an audit in a few sentences."""
    text = (
        f"{summary['issues']:,} of {summary['images']:,} labels ({100 * summary['issues_share']:.2f} %) look wrong; "
        f"the out-of-fold error is {100 * summary['out_of_fold_error']:.2f} %, and "
        f"{100 * summary['errors_that_are_issues']:.0f} % of those errors are such labels."
    )
    if summary["issues_apart"] is not None:
        text += (
            f" {summary['issues_apart']:,} ({100 * summary['issues_apart_share']:.2f} %) are not mix-ups of 0 and O, "
            "of 1, I and L, or of upper and lower case."
        )
    return "\n".join(filter(None, (text, warning(summary))))


def warning(summary: dict[str, Any]) -> str:
    """Says that an audit's findings mean little, if they do."""
    if summary["out_of_fold_error"] <= MAX_ERROR:
        return ""
    error = f"{100 * summary['out_of_fold_error']:.0f} %"
    return (
        f"These findings mean little: the models contradict {error} of the labels. They have learned too little, or "
        "most labels are wrong: raise --epochs, choose another --recipe, or audit more images."
    )
