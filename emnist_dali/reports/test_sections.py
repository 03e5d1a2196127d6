"""What a tested run predicted correctly and incorrectly: data for those sections of its report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ..evaluation.corruptions import SEVERITIES, SIDE
from ..evaluation.metrics import CALIBRATION_BINS, calibration_error, confusions, merged
from ..evaluation.robustness import amounts, means
from ..evaluation.significance import wilson
from ..runs.calibration import UNCALIBRATED
from .charts import COLOURS, GREY, Axis, BarChart, MatrixChart, Series, bar_chart, matrix_chart, share, xy_chart
from .html import percent
from .run_data import RunData, part_name

CONFUSIONS, EXAMPLES = 15, 5
MISTAKES, FIRST_MISTAKES = 48, 18  # shown, and of them at once

_METRICS = {
    "top2": "top-2 accuracy",
    "top3": "top-3 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "calibration_error": "expected calibration error",
}


def sections(run: RunData) -> dict[str, Any]:
    """What the macro `test_sections` of run_details.html shows of a run that has a test result."""
    metrics = _METRICS | {name: f"accuracy with {of} merged" for name, of in merged(run.classes).items()}
    return {
        "parts": [part_name(part) for part in run.results],
        "metrics": [
            (title, *(percent(result[metric]) for result in run.results.values()))
            for metric, title in metrics.items()
        ],
        "confusion_matrix": _confusion_matrix(run),
        "confusions": _most_frequent_confusions(run),
        "mistakes": _most_confident_mistakes(run),
        "first_mistakes": FIRST_MISTAKES,
        "per_class": _per_class(run),
        "calibration": _calibration(run),
        "data_problem": run.data_problem if run.test_images is None else "",
    }


def robustness_section(table: dict[str, Any]) -> dict[str, Any]:
    """What the macro `robustness_section` of run_details.html shows of a robustness.json."""
    clean = table["accuracy"]

    def cell(accuracy: float, interval: Sequence[float] | None = None) -> dict[str, Any]:
        lost = max(1 - accuracy / clean, 0) if clean else 0
        # The root makes a loss of 1 % visible beside one of 50 %; text is readable on any.
        return {"accuracy": accuracy, "interval": interval, "opacity": round(0.8 * lost**0.5, 2)}

    rows = [
        {
            "name": name,
            "amounts": amounts(condition),
            "cells": list(map(cell, condition["accuracy"], condition["interval"])),
        }
        for name, condition in table["conditions"].items()
    ]
    return {
        **table,
        "severities": list(SEVERITIES),
        "side": SIDE,
        "clean": cell(clean, table["interval"]),
        "rows": [*rows, {"name": "mean", "amounts": "", "cells": list(map(cell, means(table)))}],
    }


def counts_and_shares(run: RunData) -> tuple[np.ndarray, np.ndarray]:
    """The test's confusion matrix, rows are true classes, and the same as shares of its rows."""
    counts = np.array(run.results["test"]["confusion"], np.int32)
    return counts, counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _ordered(chart: BarChart | MatrixChart, orders: dict[str, np.ndarray]) -> dict[str, Any]:
    """A chart of the classes, and the orders a reader can choose, the first as it is."""
    return {"chart": chart, "orders": {title: order.tolist() for title, order in orders.items()}}


def _confusion_matrix(run: RunData) -> dict[str, Any]:
    counts, shares = counts_and_shares(run)
    return _ordered(
        matrix_chart(run.classes, counts),
        {
            "class": np.arange(len(counts)),
            "confusion": _confusion_order(shares),
            "accuracy": np.argsort(shares.diagonal(), kind="stable"),
        },
    )


def _confusion_order(shares: np.ndarray) -> np.ndarray:
    """An order of the classes (n,) in which those that are often confused are adjacent: hierarchical clustering."""
    if len(shares) < 3:
        return np.arange(len(shares))
    similarity = shares + shares.T
    np.fill_diagonal(similarity, 0)
    distance = 1 - similarity / max(similarity.max(), 1e-9)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))


def _most_frequent_confusions(run: RunData) -> list[dict[str, Any]]:
    rows = []
    for true, predicted, count, of_class in confusions(run.results["test"], CONFUSIONS):
        row = {"true": true, "predicted": predicted, "count": count, "share": of_class}
        if run.test_images:
            mask = (run.predictions["labels"] == run.classes.index(true)) & (
                run.predictions["predicted"] == run.classes.index(predicted)
            )
            row["examples"] = run.test_images(_most_confident(run.predictions, mask, EXAMPLES))
        rows.append(row)
    return rows


def _most_confident(predictions: dict[str, np.ndarray], mask: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` images of `mask` (N,), by descending probability of the predicted class."""
    indices = np.flatnonzero(mask)
    confidence = predictions["probabilities"][indices, predictions["predicted"][indices]]
    return indices[np.argsort(-confidence, kind="stable")][:most]


def _most_confident_mistakes(run: RunData) -> list[dict[str, Any]]:
    if not run.test_images:
        return []
    probabilities, predicted, true = (run.predictions[name] for name in ("probabilities", "predicted", "labels"))
    indices = _most_confident(run.predictions, predicted != true, MISTAKES)
    return [
        {
            "image": image,
            "true": run.classes[true[i]],
            "predicted": run.classes[predicted[i]],
            "probability": probabilities[i, predicted[i]],
        }
        for i, image in zip(indices, run.test_images(indices), strict=True)
    ]


def _per_class(run: RunData) -> dict[str, Any]:
    counts, shares = counts_and_shares(run)
    recall = shares.diagonal()
    f1 = 2 * counts.diagonal() / np.maximum(counts.sum(0) + counts.sum(1), 1)
    rows = [
        (name, f"{n:,}", percent(a), percent(b))
        for name, n, a, b in zip(run.classes, counts.sum(1), recall, f1, strict=True)
    ]
    tips = [f"{name}: {n} images\naccuracy (recall): {a}\nF1: {b}" for name, n, a, b in rows]
    series = {"accuracy (recall)": recall.tolist(), "F1": f1.tolist()}
    chart = bar_chart(run.classes, series, tips, Axis(format=share, high=1))
    orders = {"class": np.arange(len(counts)), "accuracy": np.argsort(recall, kind="stable")}
    return {**_ordered(chart, orders), "rows": rows}


def _calibration(run: RunData) -> dict[str, Any] | None:
    """Accuracy by probability, as the model answers and as it would without its calibration."""
    if run.predictions is None:
        return None
    predicted = run.predictions["predicted"]
    correct = predicted == run.predictions["labels"]
    probabilities = torch.from_numpy(run.predictions["probabilities"]).float()
    series = [_reliability(_of(predicted, probabilities), correct, "as it answers", COLOURS[0])]
    error_before = None
    if run.calibration != UNCALIBRATED:
        before = run.calibration.undone(probabilities)
        error_before = calibration_error(before.amax(-1), torch.from_numpy(correct))
        series.append(_reliability(_of(predicted, before), correct, "before calibration", GREY))
    series.append(Series(name="", x=[0, 1], y=[0, 1], dots=False, dashed=True, colour=GREY))
    axis = {"format": share, "low": 0, "high": 1}
    chart = xy_chart(series, Axis(title="probability of the prediction", **axis), Axis(title="accuracy", **axis))
    error = run.results["test"]["calibration_error"]
    return {"chart": chart, "error": error, "error_before": error_before, "bins": CALIBRATION_BINS}


def _of(predicted: np.ndarray, probabilities: torch.Tensor) -> np.ndarray:
    return probabilities.numpy()[np.arange(len(predicted)), predicted]


def _reliability(confidence: np.ndarray, correct: np.ndarray, name: str, colour: str) -> Series:
    """The accuracy in each bin of the predictions' probabilities, with its 95 % interval."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    masks = [bins == i for i in np.unique(bins)]
    x, y = [float(confidence[mask].mean()) for mask in masks], [float(correct[mask].mean()) for mask in masks]
    images = [int(mask.sum()) for mask in masks]
    tips = [
        f"{name}\nprobability {percent(a)}, accuracy {percent(b)}\n{n:,} images"
        for a, b, n in zip(x, y, images, strict=True)
    ]
    intervals = [wilson(int(correct[mask].sum()), n) for mask, n in zip(masks, images, strict=True)]
    return Series(name=name, x=x, y=y, line=False, colour=colour, intervals=intervals, tips=tips)
