"""The predictions of a model on one part of the data, and their file in a run folder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import is_plain, write_atomic
from ..data.manifest import MAX_SAMPLES
from ..data.sources import MAX_CLASSES

# In the metadata of a file.
_FINGERPRINT = "part_fingerprint"


class Images(NamedTuple):
    """Which images predictions are of.

    `labels` (N,), their `indices` (N,) int64 in the part, and the `fingerprint` of that part of the data. Files from
    before 2026-11-27 hold labels only.
    """

    labels: np.ndarray
    indices: np.ndarray | None = None
    fingerprint: str | None = None

    def same(self, other: "Images") -> bool:
        """Whether they are the same in the same order, as far as both say."""
        if not np.array_equal(self.labels, other.labels):
            return False
        if self.indices is None or other.indices is None:
            return True
        return np.array_equal(self.indices, other.indices) and self.fingerprint == other.fingerprint


class Predictions(NamedTuple):
    """On the host, without padded rows: probabilities (N, C) float32, labels (N,) int64, and, where they are images
    of prepared data, their indices (N,) int64 in its part and that part's fingerprint."""

    probabilities: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor | None = None
    fingerprint: str | None = None

    @property
    def images(self) -> Images:
        indices = None if self.indices is None else self.indices.numpy()
        return Images(self.labels.numpy(), indices, self.fingerprint)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes probabilities (N, C) float16, `predicted` and `labels` (N,) uint8, `indices` (N,) int64, atomically."""
    tensors = {
        "probabilities": predictions.probabilities.half(),
        "predicted": predictions.probabilities.argmax(-1).byte(),
        "labels": predictions.labels.byte(),
    }
    if predictions.indices is None or predictions.fingerprint is None:
        write_atomic(path, tensor_files.encode(tensors, {}))
        return
    tensors["indices"] = predictions.indices.long()
    write_atomic(path, tensor_files.encode(tensors, {_FINGERPRINT: predictions.fingerprint}))


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """`probabilities` (N, C) float16 or float32, `predicted` and `labels` (N,) uint8 below C; N ≥ 1.

    Files from 2026-11-27 on also hold `indices` (N,) int64. Raises UserError if the file is missing, damaged or
    something else.
    """
    return _read(path)[0]


def read_images(path: Path) -> Images:
    """Which images the predictions in a file are of; raises UserError as `read_predictions`."""
    tensors, fingerprint = _read(path)
    return Images(tensors["labels"], tensors.get("indices"), fingerprint)


def _read(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    tensors, metadata = tensor_files.decode(path, "predictions")
    fingerprint = metadata.get(_FINGERPRINT)
    if error := _find_error(tensors, fingerprint):
        raise UserError(f"{path} does not hold predictions ({error}); choose another file.")
    return {name: tensor.numpy() for name, tensor in tensors.items()}, fingerprint


def _find_error(tensors: dict[str, torch.Tensor], fingerprint: str | None) -> str | None:
    if tensors.keys() - {"indices"} != {"probabilities", "predicted", "labels"}:
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
    if "indices" in tensors:
        places = tensors["indices"]
        if places.dtype != torch.int64 or places.shape != (images,):
            return "its indices are not one per image"
        if int(places.min()) < 0 or int(places.max()) >= MAX_SAMPLES or not is_plain(fingerprint):
            return "its indices are not those of a part of the data"
    return None
