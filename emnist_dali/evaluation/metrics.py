"""Evaluation: what a model makes of a loader's images, and what is told of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from ..core import distributed
from ..core.progress import progress
from ..data.emnist import CASE_ALIKE, SHAPE_ALIKE
from ..loading.loader import Loader
from ..models.build import channels_last

CALIBRATION_BINS = 15


class Predictions(NamedTuple):
    """On the host: probabilities (N, classes) float32 and labels (N,) int64, without padded rows."""

    probabilities: torch.Tensor
    labels: torch.Tensor


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
    everybody = distributed.gathered((torch.cat(probabilities).cpu(), torch.cat(true).cpu()))
    whole = Predictions(*(_in_order(tensors, share) for tensors in zip(*everybody, strict=True)))
    counted = whole.labels >= 0
    return Predictions(whole.probabilities[counted], whole.labels[counted])


def _in_order(of_ranks: Sequence[torch.Tensor], share: int) -> torch.Tensor:
    """A batch is the slices of all ranks, `share` rows each, one after the other."""
    batches = zip(*(tensor.split(share) for tensor in of_ranks), strict=True)
    return torch.cat([rows for batch in batches for rows in batch])


def score(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Fractions, not percent, of what was predicted for one part.

    accuracy, top2, top3; weighted_f1; macro_f1, without classes that are neither there nor predicted; class_mean, the
    mean recall of the classes that are there; case_merged and shape_merged, the accuracy where characters that
    cannot be told apart without context count as one; calibration_error, expected, of the top class;
    per_class, each class's recall, 0 for one without images; images; confusion (rows are true).
    """
    probabilities, labels = predictions
    predicted, n, classes = probabilities.argmax(-1), len(classes), list(classes)
    shared: dict[str, Any] = {"num_classes": n, "validate_args": False}
    metrics = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(**shared, average="micro"),
            "weighted_f1": MulticlassF1Score(**shared, average="weighted"),
            "macro_f1": MulticlassF1Score(**shared, average="macro"),
            "per_class": MulticlassAccuracy(**shared, average="none"),
            "confusion": MulticlassConfusionMatrix(**shared),
        }
    )
    result = {name: value.tolist() for name, value in metrics(predicted, labels).items()}
    for k in (2, 3):
        top = MulticlassAccuracy(**shared, average="micro", top_k=min(k, n))
        result[f"top{k}"] = top(probabilities, labels).item()
    # torchmetrics has a 16th bin for exactly 1; this is the largest number below it.
    confidence = probabilities.amax(-1).clamp(max=1 - 2**-24)
    calibration = BinaryCalibrationError(n_bins=CALIBRATION_BINS, norm="l1", validate_args=False)
    result["calibration_error"] = calibration(confidence, (predicted == labels).int()).item()
    for name, alike in (("case_merged", CASE_ALIKE), ("shape_merged", CASE_ALIKE | SHAPE_ALIKE)):
        group = torch.tensor(groups(alike, classes))
        result[name] = (group[predicted] == group[labels]).float().mean().item()
    there = labels.bincount(minlength=n) > 0
    result["class_mean"] = torch.tensor(result["per_class"])[there].mean().item()
    result["per_class"] = dict(zip(classes, result["per_class"], strict=True))
    return {**result, "images": len(labels)}


def groups(alike: dict[str, str], classes: Sequence[str]) -> list[int]:
    """For each class the label of the character that it is merged into, followed to the end."""
    labels = []
    for character in classes:
        while alike.get(character) in classes:
            character = alike[character]
        labels.append(classes.index(character))
    return labels


def confusions(result: dict[str, Any], most: int = 10) -> list[tuple[str, str, int, float]]:
    """The most frequent of a result of `score`: true and predicted class, images, share of the true class."""
    classes = list(result["per_class"])
    counts = torch.tensor(result["confusion"])
    totals = counts.sum(1)
    # Stable, unlike topk: equal counts come in the order of their classes.
    values, places = counts.clone().fill_diagonal_(0).flatten().sort(descending=True, stable=True)
    rows = []
    for count, place in zip(values[:most].tolist(), places[:most].tolist(), strict=True):
        true, predicted = divmod(place, len(classes))
        if count:
            rows.append((classes[true], classes[predicted], count, count / totals[true].item()))
    return rows


def mistakes(predictions: Predictions, most: int) -> torch.Tensor:
    """Places of at most so many images that were read wrongly, the most confident first."""
    confidence, predicted = predictions.probabilities.max(-1)
    wrong = (predicted != predictions.labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:most]


def evaluate(
    model: torch.nn.Module,
    loader: Loader,
    classes: Sequence[str],
    autocast: Callable,
    description: str,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """`score` of `predict`."""
    return score(predict(model, loader, autocast, description, after_batch), classes)
