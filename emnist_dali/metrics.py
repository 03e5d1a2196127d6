"""Evaluation: a model over a loader, and what is told of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from .loader import Loader
from .model import channels_last
from .progress import progress


def evaluate(
    model: torch.nn.Module, loader: Loader, classes: Sequence[str], autocast: Callable, description: str
) -> dict[str, Any]:
    """Fractions, not percent: accuracy, weighted_f1, macro_f1, per_class; images; confusion (rows are true).

    `per_class` gives each class's recall, 0 for a class without images; `macro_f1` leaves out classes that are
    neither there nor predicted. Padded rows (label −1) do not count.
    """
    n = len(classes)
    shared: dict[str, Any] = {"num_classes": n, "ignore_index": -1, "validate_args": False}
    metrics = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(**shared, average="micro"),
            "weighted_f1": MulticlassF1Score(**shared, average="weighted"),
            "macro_f1": MulticlassF1Score(**shared, average="macro"),
            "per_class": MulticlassAccuracy(**shared, average="none"),
            "confusion": MulticlassConfusionMatrix(**shared),
        }
    ).to(loader.device)
    model.eval()
    with torch.inference_mode():
        for images, labels in progress(loader, description=description, total=len(loader), unit=" batches"):
            with autocast():
                logits = model(channels_last(images))
            metrics.update(logits.argmax(-1), labels)
    result = {name: value.tolist() for name, value in metrics.compute().items()}
    result["per_class"] = dict(zip(classes, result["per_class"], strict=True))
    return {**result, "images": sum(map(sum, result["confusion"]))}
