"""What a model made of a part's images, and the file in which a run keeps it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import write_whole
from ..data.sources import MAX_CLASSES


class Predictions(NamedTuple):
    """On the host: probabilities (N, classes) float32 and labels (N,) int64, without padded rows."""

    probabilities: torch.Tensor
    labels: torch.Tensor


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Probabilities in half precision, predicted classes and labels, so that nobody has to read the images again."""
    tensors = {
        "probabilities": predictions.probabilities.half(),
        "predicted": predictions.probabilities.argmax(-1).byte(),
        "labels": predictions.labels.byte(),
    }
    write_whole(path, tensor_files.encode(tensors, {}))


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """`probabilities` (N, C) float16 or float32, `predicted` and `labels` (N,) uint8 below C; N is 1 or more.

    Raises UserError where the file is missing, damaged, or holds something else.
    """
    tensors, _ = tensor_files.decode(path, "predictions")
    if wrong := _wrong_predictions(tensors):
        raise UserError(f"{path} does not hold predictions ({wrong}); take another one.")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _wrong_predictions(tensors: dict[str, torch.Tensor]) -> str | None:
    if tensors.keys() != {"probabilities", "predicted", "labels"}:
        return "it has other tensors"
    probabilities, predicted, labels = tensors["probabilities"], tensors["predicted"], tensors["labels"]
    if probabilities.dtype not in (torch.float16, torch.float32) or probabilities.ndim != 2:
        return "its probabilities are no matrix of floats"
    images, classes = probabilities.shape
    if images < 1 or not 1 <= classes <= MAX_CLASSES:
        return "its probabilities are of no images or classes"
    for name, of in (("predicted", predicted), ("labels", labels)):
        if of.dtype != torch.uint8 or of.shape != (images,) or int(of.max()) >= classes:
            return f"its {name} are not a class for each image"
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):  # NaN is neither
        return "its probabilities are not from 0 to 1"
    return None
