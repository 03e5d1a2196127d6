"""Evaluation: a model over a loader, and what is told of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from . import ranks
from .loader import Loader
from .model import channels_last
from .progress import progress


def evaluate(
    model: torch.nn.Module,
    loader: Loader,
    classes: Sequence[str],
    autocast: Callable,
    description: str,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Fractions, not percent: accuracy, weighted_f1, macro_f1, per_class; images; confusion (rows are true).

    `per_class` gives each class's recall, 0 for a class without images; `macro_f1` leaves out classes that are
    neither there nor predicted. Padded rows (label −1) do not count. Waits for the device once, at the end. Each
    rank has its slices, and all get the result.
    """
    model.eval()
    predicted, true = [], []
    with torch.inference_mode():
        for images, labels in progress(loader, description=description, total=len(loader), unit=" batches"):
            with autocast():
                predicted.append(model(channels_last(images)).argmax(-1))
            true.append(labels.clone())  # the loader will use its buffer again
            after_batch()
    everybody = ranks.gathered((torch.cat(predicted).cpu(), torch.cat(true).cpu()))
    classified, labels = (torch.cat(tensors) for tensors in zip(*everybody, strict=True))
    counted = labels >= 0
    n = len(classes)
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
    values = metrics(classified[counted], labels[counted])
    result = {name: value.tolist() for name, value in values.items()}
    result["per_class"] = dict(zip(classes, result["per_class"], strict=True))
    return {**result, "images": sum(map(sum, result["confusion"]))}
