"""Which labels of the training images look wrong: out-of-fold probabilities and confident learning (cleanlab).

Northcutt, Jiang & Chuang 2021, «Confident Learning: Estimating Uncertainty in Dataset Labels», arXiv:1911.00068.
"""

import csv
import html
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import remove_temporaries, write_json, write_whole
from ..core.locks import LOCK, Lock
from ..core.progress import say
from ..data.emnist import CASE_ALIKE, SHAPE_ALIKE
from ..data.prepare import prepare
from ..data.shards import Shards
from ..evaluation.inference import predict
from ..evaluation.metrics import groups
from ..loading import sampling
from ..loading.loader import Loader
from ..reports.html import gallery, page
from ..runtime import autocast, resolve
from ..training.resume import FREE
from ..training.build import build_training

GALLERY = 500  # images
RESULTS = LIST, PAGE, SUMMARY = "issues.csv", "gallery.html", "summary.json"  # what is replaced in an audit's folder


def audit(config: Config, folds: int, out: Path) -> dict[str, Any]:
    """Trains `folds` times on the rest and looks at each fold; writes issues.csv, gallery.html and summary.json.

    A fold that `out` holds already is not trained again. The test split is not touched. Raises UserError where
    cleanlab is missing, where a fold there is of other data or settings, and where `out` is in use or not an audit's.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise UserError(f"cleanlab could not be imported ({error}); pip install 'emnist-dali[audit]'.") from error
    config = resolve(config)
    folder = prepare(config.data.split, config.data.source, config.data.data_dir)
    shards = Shards(folder, "train")
    labels, classes = shards.labels(), shards.manifest.classes
    fold_of = sampling.folds(labels, folds, config.training.seed)
    about = _about(config, shards, folds)
    with _claimed(out):
        probabilities = np.empty((len(labels), len(classes)), np.float32)
        for fold in range(folds):
            members = np.flatnonzero(fold_of == fold)
            path = out / f"fold-{fold}-of-{folds}.safetensors"
            if not path.exists():
                say(f"Fold {fold + 1} of {folds}: training on the other {len(labels) - len(members):,} images.")
                found = _out_of_fold(config, shards, np.flatnonzero(fold_of != fold), members)
                write_whole(path, tensor_files.encode({"probabilities": found}, {"about": about}))
            probabilities[members] = _kept(path, about, (len(members), len(classes)))
        # By rising probability of the given label.
        issues = find_label_issues(
            labels,
            probabilities,
            filter_by="confident_learning",
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
        predicted = probabilities.argmax(1)
        wrong = predicted != labels
        group = np.array(groups(CASE_ALIKE | SHAPE_ALIKE, classes))
        apart = int((group[labels[issues]] != group[predicted[issues]]).sum())
        summary = {
            "data": str(shards.manifest),
            "recipe": config.recipe,
            "folds": folds,
            "seed": config.training.seed,
            "images": len(labels),
            "out_of_fold_error": float(wrong.mean()),
            "issues": len(issues),
            "issues_share": len(issues) / len(labels),
            "issues_apart": apart,
            "issues_apart_share": apart / len(labels),
            "errors_that_are_issues": float(wrong[issues].sum() / max(wrong.sum(), 1)),
        }
        rows = [
            (int(i), classes[labels[i]], classes[predicted[i]], probabilities[i, labels[i]], probabilities[i].max())
            for i in issues
        ]
        _write_list(out / LIST, rows)
        _write_gallery(out / PAGE, rows[:GALLERY], shards, summary)
        write_json(out / SUMMARY, summary)
    return summary


def _claimed(out: Path) -> Lock:
    """The lock of an audit's folder, which is made where it is missing; UserError where it holds other files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = [] if (out / LOCK).exists() else [name for name in RESULTS if os.path.lexists(out / name)]
    except OSError as error:
        raise UserError(f"{out} could not be made ({error.strerror}); name another --out.") from error
    if taken:
        raise UserError(f"{out / taken[0]} is there, and no audit; name another --out, or move that elsewhere.")
    lock = Lock(out / LOCK, out)
    remove_temporaries(out)
    return lock


def _about(config: Config, shards: Shards, folds: int) -> str:
    """What decides the probabilities of a fold."""
    settings = {
        part: {name: value for name, value in node.items() if name not in FREE}
        for part, node in config.to_dict().items()
        if isinstance(node, dict)
    }
    return json.dumps({"fingerprint": shards.manifest.fingerprint, "folds": folds, **settings})


def _kept(path: Path, about: str, shape: tuple[int, int]) -> np.ndarray:
    """The probabilities, of `shape`, of a fold; one from before folds had a sha256 is taken as it is."""
    tensors, metadata = tensor_files.decode(path, "a fold")
    found = tensors.get("probabilities")
    if found is None or found.dtype != torch.float32 or not ((found >= 0) & (found <= 1)).all():
        raise UserError(f"{path} does not hold a fold (no probabilities from 0 to 1); remove it.")
    if metadata.get("about") != about or found.shape != shape:
        raise UserError(f"{path} is of other data or settings; name another --out or remove it.")
    return found.numpy()


def _out_of_fold(config: Config, shards: Shards, indices: np.ndarray, held_out: np.ndarray) -> torch.Tensor:
    """Probabilities (held_out, classes) after a training on `indices`."""
    with build_training(config, shards, indices=indices) as training:
        trainer = training.trainer
        while not trainer.done:
            entry = trainer.train_epoch(training.loader)
            say(f"epoch {entry['epoch'] + 1}/{config.training.epochs}  loss {entry['loss']:.4f}")
            trainer.begin(trainer.epoch + 1)
    # Not `evaluation_loader`: every held-out image is looked at, even in a trial.
    with Loader.from_config(shards, config, indices=held_out, train=False) as loader:
        return predict(trainer.evaluated, loader, autocast(config), "fold").probabilities


def _write_list(path: Path, rows: list[tuple]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "given", "predicted", "probability of the given", "probability of the predicted"))
    writer.writerows((*row[:3], f"{row[3]:.4f}", f"{row[4]:.4f}") for row in rows)
    write_whole(path, text.getvalue().encode())


def _write_gallery(path: Path, rows: list[tuple], shards: Shards, summary: dict[str, Any]) -> None:
    images = shards.images(np.array([row[0] for row in rows], np.int64))
    body = f"""<p>{html.escape(summary["data"])}. {summary["issues"]:,} of {summary["images"]:,} labels
({100 * summary["issues_share"]:.2f} %) look wrong by confident learning; the out-of-fold error is
{100 * summary["out_of_fold_error"]:.2f} %, and {100 * summary["errors_that_are_issues"]:.0f} % of it are such labels.
{summary["issues_apart"]:,} ({100 * summary["issues_apart_share"]:.2f} %) are between characters that can be told
apart without context, unlike 0 and O or 1, I and L. The {len(rows)} least likely come first.</p>
"""
    body += gallery(
        (
            image,
            f"given <b>{html.escape(given)}</b> {100 * own:.0f} %<br>looks like <b>{html.escape(looks)}</b> "
            f"{100 * top:.0f} %<br><small>image {i:,}</small>",
        )
        for image, (i, given, looks, own, top) in zip(images, rows, strict=True)
    )
    write_whole(path, page("Label issues", body).encode())


def table(summary: dict[str, Any]) -> str:
    """The summary as a line for people."""
    return (
        f"{summary['issues']:,} of {summary['images']:,} labels ({100 * summary['issues_share']:.2f} %) look wrong; "
        f"the out-of-fold error is {100 * summary['out_of_fold_error']:.2f} %, and "
        f"{100 * summary['errors_that_are_issues']:.0f} % of those errors are such labels. "
        f"{summary['issues_apart']:,} ({100 * summary['issues_apart_share']:.2f} %) are not between 0 and O, 1, I "
        "and L or two cases of a shape."
    )
