"""Two runs on the same test images: how far apart they are, and whether that can be chance."""

from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.stats import binomtest

from .errors import UserError
from .files import reason
from .run_folder import RunFolder


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Accuracies with Wilson's 95 % interval, their paired difference with Wald's, and McNemar's exact test.

    Reads the predictions that each run kept, and no test image. Raises UserError where a run has none, or where the
    two are of different images.
    """
    (right, labels), (other, other_labels) = _right(first), _right(second)
    if not labels.equal(other_labels):
        raise UserError(f"{first} and {second} were tested on different images; compare runs of one split.")
    n = len(labels)
    only_first, only_second = int((right & ~other).sum()), int((other & ~right).sum())
    apart = only_first + only_second
    difference = (only_second - only_first) / n
    spread = 1.96 * sqrt(apart - (only_second - only_first) ** 2 / n) / n
    return {
        "runs": [str(first), str(second)],
        "images": n,
        "accuracy": [right.double().mean().item(), other.double().mean().item()],
        "interval": [wilson(int(mask.sum()), n) for mask in (right, other)],
        "difference": difference,
        "difference_interval": [difference - spread, difference + spread],
        "only_first_right": only_first,
        "only_second_right": only_second,
        "mcnemar_p": binomtest(only_first, apart).pvalue if apart else 1.0,
    }


def _right(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    path = RunFolder(run).predictions("test")
    if not path.is_file():
        raise UserError(f"{path} is missing; name a run that was tested.")
    try:
        tensors = load_file(path)
        predicted, labels = tensors["predicted"], tensors["labels"]
        kinds = {(tensor.dtype, tensor.ndim, tensor.numel()) for tensor in (predicted, labels)}
        if kinds != {(torch.uint8, 1, labels.numel() or 1)}:
            raise ValueError("one label and one prediction an image are needed")
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no predictions ({reason(error)}); name another run.") from error
    return predicted == labels, labels


def wilson(right: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    interval = binomtest(right, images).proportion_ci(method="wilson")
    return interval.low, interval.high


def table(result: dict[str, Any]) -> str:
    """The result of `compare` as lines for people."""
    lines = []
    for run, accuracy, (low, high) in zip(result["runs"], result["accuracy"], result["interval"], strict=True):
        lines.append(f"{run}: {100 * accuracy:.2f} %, 95 % interval {100 * low:.2f} to {100 * high:.2f}")
    low, high = result["difference_interval"]
    p = result["mcnemar_p"]
    lines.append(
        f"difference {100 * result['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}; "
        f"only the first is right on {result['only_first_right']:,}, only the second on "
        f"{result['only_second_right']:,} of {result['images']:,} images"
    )
    verdict = "more than chance" if p < 0.05 else "may be chance"
    lines.append(f"McNemar's exact test: p = {p:.2g}, {verdict} at the 5 % level")
    return "\n".join(lines)
