"""Two runs on the same test images: how much they differ, and whether that may be chance."""

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ..core.errors import UserError
from ..core.files import printable
from ..runs.folder import RunFolder
from ..runs.predictions import read_predictions


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Accuracies with Wilson's 95 % interval, their paired difference with Wald's, and McNemar's exact test.

    Reads the runs' saved predictions and no test image. Raises UserError if a run has none, or if the two were tested
    on different images.
    """
    (first_right, labels), (second_right, other_labels) = _right(first), _right(second)
    if not np.array_equal(labels, other_labels):
        raise UserError(f"{first} and {second} were tested on different images; compare runs of one split.")
    n = len(labels)
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    difference = (only_second - only_first) / n
    spread = 1.96 * sqrt(discordant - (only_second - only_first) ** 2 / n) / n
    return {
        "runs": [str(first), str(second)],
        "images": n,
        "accuracy": [float(first_right.mean()), float(second_right.mean())],
        "interval": [wilson(int(mask.sum()), n) for mask in (first_right, second_right)],
        "difference": difference,
        "difference_interval": [difference - spread, difference + spread],
        "only_first_right": only_first,
        "only_second_right": only_second,
        "mcnemar_p": binomtest(only_first, discordant).pvalue if discordant else 1.0,
    }


def _right(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Which images (N,) were classified correctly, and their labels."""
    path = RunFolder(run).predictions_path("test")
    if not path.is_file():
        raise UserError(f"{path} is missing; name a run that has been tested.")
    tensors = read_predictions(path)
    return tensors["predicted"] == tensors["labels"], tensors["labels"]


def wilson(right: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    interval = binomtest(right, images).proportion_ci(method="wilson")
    return interval.low, interval.high


def table(result: dict[str, Any]) -> str:
    """The result of `compare` as lines of text."""
    lines = []
    for run, accuracy, (low, high) in zip(result["runs"], result["accuracy"], result["interval"], strict=True):
        lines.append(f"{printable(run)}: {100 * accuracy:.2f} %, 95 % interval {100 * low:.2f} to {100 * high:.2f}")
    low, high = result["difference_interval"]
    p = result["mcnemar_p"]
    lines.append(
        f"difference {100 * result['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}; "
        f"only the first is correct on {result['only_first_right']:,}, only the second on "
        f"{result['only_second_right']:,} of {result['images']:,} images"
    )
    verdict = "more than chance" if p < 0.05 else "may be chance"
    lines.append(f"McNemar's exact test: p = {p:.2g}, {verdict} at the 5 % level")
    return "\n".join(lines)
