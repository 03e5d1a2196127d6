"""Metrics of predictions."""

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from ..data.emnist import CASE_ALIKE, SHAPE_ALIKE, SPLITS
from ..runs.predictions import Predictions

CALIBRATION_BINS = 15
# Metrics in which characters that cannot be told apart without context count as one.
_MERGED = {"case_merged": CASE_ALIKE, "shape_merged": CASE_ALIKE | SHAPE_ALIKE}


def score(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Fractions, not percent, of one part's predictions.

    accuracy, top2, top3; weighted_f1; macro_f1, over the classes that are present or predicted; balanced_accuracy,
    the mean recall of the classes that are present; case_merged and shape_merged, the accuracy where characters that
    cannot be told apart without context count as one; calibration_error, expected, of the top class; per_class, each
    class's recall, 0 for a class without images; images; confusion (rows are true).
    """
    probabilities, labels = predictions.probabilities, predictions.labels
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
    result["calibration_error"] = calibration_error(probabilities.amax(-1), predicted == labels)
    for name, alike in _MERGED.items():
        group = torch.tensor(groups(alike, classes))
        result[name] = (group[predicted] == group[labels]).float().mean().item()
    present = labels.bincount(minlength=n) > 0
    result["balanced_accuracy"] = torch.tensor(result["per_class"])[present].mean().item()
    result["per_class"] = dict(zip(classes, result["per_class"], strict=True))
    return {**result, "images": len(labels)}


def calibration_error(confidence: torch.Tensor, correct: torch.Tensor) -> float:
    """Expected difference of probability and accuracy of predictions: (N,) float32 and (N,) bool."""
    calibration = BinaryCalibrationError(n_bins=CALIBRATION_BINS, norm="l1", validate_args=False)
    # torchmetrics puts exactly 1 into a 16th bin; this is the largest float32 below it.
    return calibration(confidence.clamp(max=1 - 2**-24), correct.int()).item()


def groups(alike: dict[str, str], classes: Sequence[str]) -> list[int]:
    """For each class the label of the class that it is merged into."""
    labels = []
    for character in classes:
        while alike.get(character) in classes:
            character = alike[character]
        labels.append(classes.index(character))
    return labels


def merged(classes: Sequence[str]) -> dict[str, str]:
    """case_merged and shape_merged, where they merge some of `classes`, and what; none unless all are EMNIST's."""
    classes = list(classes)
    if not set(SPLITS["byclass"].classes).issuperset(classes):
        return {}
    case, shape = (groups(alike, classes) for alike in _MERGED.values())
    cases, said = "C/c, O/o and the like", {}
    if case != list(range(len(classes))):
        said["case_merged"] = cases
    if shape != case:
        said["shape_merged"] = f"{cases}, 0/O and 1/I/L" if said else "0/O and 1/I/L"
    return said


def confusions(result: dict[str, Any], most: int = 10) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions: true class, predicted class, images, and their share of the true class."""
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
    """Positions of the most confident wrong predictions, the most confident first."""
    confidence, predicted = predictions.probabilities.max(-1)
    wrong = (predicted != predictions.labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:most]
