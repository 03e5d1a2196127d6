"""Finished models that classify images: `load_classifier` for a run, here or on the Hub, or an exported ONNX file."""

from pathlib import Path
from typing import Protocol

import numpy as np

from ..core.errors import UserError
from ..weights import NAME as BUILTIN
from ..weights import located
from .hub import download, is_address
from .onnx_classifier import OnnxClassifier
from .typicality import Typicality


class Classifier(Protocol):
    """A finished model that classifies images of one size."""

    name: str
    classes: tuple[str, ...]  # in label order
    shape: tuple[int, int]  # (H, W) of the images
    converted: bool  # whether it takes images in EMNIST's style, not resized images of the user's own
    # Of validation images: None for a model that held out none, or too few.
    thresholds: list[float] | None  # as `prediction_sets.fit_thresholds` returns them
    typicality: Typicality | None

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) uint8, upright and, if `converted`, light on dark → (N, classes) float32."""
        ...


def load_classifier(path: str | Path = BUILTIN) -> Classifier:
    """The model in a run folder, in a .onnx file that `emnist-dali export` wrote, in a run on the Hugging Face Hub as
    `hf://user/name`, or `builtin`: that of the package.

    Raises UserError if the run has no weights yet, if the file is damaged or not from emnist-dali, if onnx or
    onnxruntime is missing for a .onnx, or torch for others, and as `hub.download` does.

    >>> import numpy as np
    >>> from emnist_dali import load_classifier
    >>> model = load_classifier()
    >>> images = np.zeros((5, *model.shape), np.uint8)
    >>> model.probabilities(images).shape
    (5, 47)
    """
    name = path if is_address(path) else None
    path = download(path) if is_address(path) else located(path)
    if path.suffix == ".onnx":
        return OnnxClassifier(path)
    try:
        from .trained_classifier import TrainedClassifier  # torch: 1.1 s, which a .onnx need not wait for
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path} needs {error.name}, which is not installed; pip install emnist-dali, without --no-deps, or name "
            "an exported .onnx."
        ) from error
    return TrainedClassifier(path, name)
