"""What a tested run predicted correctly and incorrectly: data for those sections of its report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ..evaluation.corruptions import SEVERITIES, SIDE
from ..evaluation.metrics import CALIBRATION_BINS, calibration_error, confusions
from ..evaluation.robustness import amounts, means
from ..evaluation.significance import wilson
from ..runs.calibration import UNCALIBRATED
from .html import percent
from .run_data import RunData, part_name

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

CONFUSIONS, EXAMPLES = 15, 5
MISTAKES = 48
# Tells I from l and O from 0.
CHARACTERS = {"family": "ui-monospace, monospace"}
LEGEND = {"orientation": "h", "y": 1, "yanchor": "bottom"}
CLASS_AXIS = {"type": "category", "tickfont": CHARACTERS, "showgrid": False}

_METRICS = {
    "top2": "top-2 accuracy",
    "top3": "top-3 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "case_merged": "accuracy with C/c, O/o and the like merged",
    "shape_merged": "accuracy with 0/O and 1/I/L merged, too",
    "calibration_error": "expected calibration error",
}


def sections(run: RunData) -> dict[str, Any]:
    """What the macro `test_sections` of run_details.html shows of a run that has a test result."""
    return {
        "parts": [part_name(part) for part in run.results],
        "metrics": [
            (title, *(percent(result[metric]) for result in run.results.values()))
            for metric, title in _METRICS.items()
        ],
        "confusion_matrix": _confusion_matrix(run),
        "confusions": _most_frequent_confusions(run),
        "mistakes": _most_confident_mistakes(run),
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


def _ordered(figure: "Figure", orders: dict[str, np.ndarray]) -> dict[str, Any]:
    """A chart of the classes, whose data must be lists, and the orders a reader can choose, the first as it is."""
    return {"figure": figure, "orders": {title: order.tolist() for title, order in orders.items()}}


def _confusion_matrix(run: RunData) -> dict[str, Any]:
    from plotly.graph_objects import Figure, Heatmap

    counts, shares = counts_and_shares(run)
    labels, diagonal = run.chart_labels, np.eye(len(counts), dtype=bool)
    blue, orange, red = "rgba(59,130,246,{})", "rgba(249,115,22,{})", "rgba(220,38,38,{})"
    # A confusion of 1 % must be visible beside one of 50 %.
    errors = [(0, orange.format(0.1)), (0.01, orange.format(0.35)), (0.1, orange.format(1)), (0.5, red.format(1))]
    figure = Figure()
    for cells, scale in (
        (diagonal, [(0, blue.format(0.1)), (1, blue.format(1))]),
        (~diagonal, [*errors, (1, red.format(1))]),
    ):
        shown = cells & (counts > 0)
        figure.add_trace(
            Heatmap(
                x=labels, y=labels, z=_where(shown, shares.round(5)), customdata=_where(shown, counts),
                zmin=0, zmax=1, colorscale=scale, showscale=False, hoverongaps=False,
                xgap=len(labels) <= 64, ygap=len(labels) <= 64,
                hovertemplate="true %{y}, predicted %{x}<br>%{customdata:,} images, %{z:.2%}<extra></extra>",
            )
        )  # fmt: skip
    axis = {
        **CLASS_AXIS, "constrain": "domain", "mirror": True, "linecolor": "rgba(128,128,128,.5)",
    }  # fmt: skip
    figure.update_layout(
        xaxis={**axis, "title": {"text": "predicted", "standoff": 5}},
        yaxis={**axis, "title": {"text": "true", "standoff": 5}, "autorange": "reversed", "scaleanchor": "x"},
    )
    return _ordered(
        figure,
        {
            "class": np.arange(len(labels)),
            "confusion": _confusion_order(shares),
            "accuracy": np.argsort(shares.diagonal(), kind="stable"),
        },
    )


def _where(mask: np.ndarray, values: np.ndarray) -> list[list[float | None]]:
    return np.where(mask, values.astype(object), None).tolist()


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
    for true, predicted, count, share in confusions(run.results["test"], CONFUSIONS):
        row = {"true": true, "predicted": predicted, "count": count, "share": share}
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
    from plotly.graph_objects import Bar, Figure

    counts, shares = counts_and_shares(run)
    labels, recall, images = run.chart_labels, shares.diagonal(), counts.sum(1).tolist()
    f1 = 2 * counts.diagonal() / np.maximum(counts.sum(0) + counts.sum(1), 1)
    figure = Figure()
    for name, values in (("accuracy (recall)", recall), ("F1", f1)):
        hover = f"%{{x}}: {name} %{{y:.2%}}, %{{customdata:,}} images<extra></extra>"
        figure.add_trace(Bar(x=labels, y=values.tolist(), name=name, customdata=images, hovertemplate=hover))
    figure.update_layout(xaxis=CLASS_AXIS, yaxis={"range": [0, 1], "tickformat": ".0%"}, legend=LEGEND)
    return _ordered(figure, {"class": np.arange(len(labels)), "accuracy": np.argsort(recall, kind="stable")})


def _calibration(run: RunData) -> dict[str, Any] | None:
    """Accuracy by probability, as the model answers and as it would without its calibration."""
    from plotly.graph_objects import Figure, Scatter

    if run.predictions is None:
        return None
    predicted = run.predictions["predicted"]
    correct = predicted == run.predictions["labels"]
    probabilities = torch.from_numpy(run.predictions["probabilities"]).float()
    figure = Figure()
    figure.add_trace(_reliability(_of(predicted, probabilities), correct, "as it answers", None))
    error_before = None
    if run.calibration != UNCALIBRATED:
        before = run.calibration.undone(probabilities)
        error_before = calibration_error(before.amax(-1), torch.from_numpy(correct))
        figure.add_trace(_reliability(_of(predicted, before), correct, "before calibration", "#bbb"))
    diagonal = {"dash": "dot", "color": "#888"}
    figure.add_trace(Scatter(x=[0, 1], y=[0, 1], mode="lines", line=diagonal, hoverinfo="skip", showlegend=False))
    axis = {"tickformat": ".0%", "range": [-0.02, 1.02], "constrain": "domain"}
    figure.update_layout(
        showlegend=error_before is not None,
        legend=LEGEND,
        xaxis={**axis, "title": {"text": "probability of the prediction", "standoff": 5}},
        yaxis={**axis, "title": {"text": "accuracy", "standoff": 5}, "scaleanchor": "x"},
    )
    error = run.results["test"]["calibration_error"]
    return {"figure": figure, "error": error, "error_before": error_before, "bins": CALIBRATION_BINS}


def _of(predicted: np.ndarray, probabilities: torch.Tensor) -> np.ndarray:
    return probabilities.numpy()[np.arange(len(predicted)), predicted]


def _reliability(confidence: np.ndarray, correct: np.ndarray, name: str, color: str | None) -> "Scatter":
    """The accuracy in each bin of the predictions' probabilities, with its 95 % interval."""
    from plotly.graph_objects import Scatter

    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    masks = [bins == i for i in np.unique(bins)]
    x, y = [confidence[mask].mean() for mask in masks], [correct[mask].mean() for mask in masks]
    intervals = [wilson(int(correct[mask].sum()), int(mask.sum())) for mask in masks]
    error_bars = {
        "symmetric": False,
        "array": [high - mean for (_, high), mean in zip(intervals, y, strict=True)],
        "arrayminus": [mean - low for (low, _), mean in zip(intervals, y, strict=True)],
    }
    hover = "probability %{x:.1%}, accuracy %{y:.1%}<br>%{customdata:,} images<extra></extra>"
    images = [int(mask.sum()) for mask in masks]
    marker = {"color": color} if color else None
    return Scatter(
        x=x, y=y, error_y=error_bars, customdata=images, mode="markers", hovertemplate=hover, name=name, marker=marker
    )
