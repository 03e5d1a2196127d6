"""The predictions of a model on one part of the data, and their file in a run folder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import write_atomic
from ..data.sources import MAX_CLASSES


class Predictions(NamedTuple):
    """On the host: probabilities (N, C) float32 and labels (N,) int64, without padded rows."""

    probabilities: torch.Tensor
    labels: torch.Tensor


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes probabilities (N, C) float16, `predicted` and `labels` (N,) uint8, atomically."""
    tensors = {
        "probabilities": predictions.probabilities.half(),
        "predicted": predictions.probabilities.argmax(-1).byte(),
        "labels": predictions.labels.byte(),
    }
    write_atomic(path, tensor_files.encode(tensors, {}))


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """`probabilities` (N, C) float16 or float32, `predicted` and `labels` (N,) uint8 below C; N ≥ 1.

    Raises UserError if the file is missing, damaged or something else.
    """
    tensors, _ = tensor_files.decode(path, "predictions")
    if error := _find_error(tensors):
        raise UserError(f"{path} does not hold predictions ({error}); choose another file.")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _find_error(tensors: dict[str, torch.Tensor]) -> str | None:
    if tensors.keys() != {"probabilities", "predicted", "labels"}:
        return "its tensors have other names"
    probabilities = tensors["probabilities"]
    if probabilities.dtype not in (torch.float16, torch.float32) or probabilities.ndim != 2:
        return "its probabilities are not a matrix of floats"
    images, classes = probabilities.shape
    if images < 1 or not 1 <= classes <= MAX_CLASSES:
        return f"it has {images:,} images and {classes:,} classes"
    for name in ("predicted", "labels"):
        indices = tensors[name]
        if indices.dtype != torch.uint8 or indices.shape != (images,) or int(indices.max()) >= classes:
            return f"its {name} are not one class per image"
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):  # false for NaN
        return "its probabilities are not between 0 and 1"
    return None
