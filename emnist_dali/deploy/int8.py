"""8-bit integers in place of an ONNX graph's float32, calibrated and compared on images of the run's train part."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UserError
from ..core.progress import progress
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..loading import sampling
from ..loading.validation import validation_images
from ..runs.trained_classifier import TrainedClassifier

if TYPE_CHECKING:
    import onnx

# Of which the ranges of the activations are taken.
CALIBRATION_IMAGES = 1000
# To compare on: validation images if they are not too few, otherwise any that it was not calibrated on.
FEWEST, MOST = 1000, 5000
MAX_FALL = 0.005  # of the accuracy
# The operators with weights: neither the preprocessing nor the calibration of the probabilities has any of them.
_OPERATORS = ["Conv", "Gemm", "MatMul"]
_BATCH = 64


@dataclass(frozen=True)
class Sample:
    """Images of a run's train part: indices (n,) int64 of those to calibrate on and, of others, to compare on."""

    shards: Shards
    calibration: np.ndarray
    comparison: np.ndarray
    description: str  # of the comparison's

    @classmethod
    def of(cls, trained: TrainedClassifier) -> "Sample":
        """The same each time. Raises UserError if there are no images like those that the run was trained on."""
        data, seed = trained.config.data, trained.config.training.seed
        try:
            shards = Shards(split_folder(data.data_dir, data.split, data.source), "train")
        except UserError as error:
            raise UserError(f"int8 is calibrated on training images: {error}") from error
        if (shards.manifest.classes, shards.shape) != (trained.classes, trained.shape):
            raise UserError(
                f"int8 is calibrated on training images, and {shards.folder} has other classes or another size than "
                "the run's; prepare those, or export without --int8."
            )
        labels = shards.labels()
        training, of, validation = validation_images(shards, data, seed)
        calibration = _some(labels, training, min(CALIBRATION_IMAGES, len(training) // 2), seed)
        # Of other data than the run's it would be another validation part.
        same = of is shards and shards.manifest.fingerprint == trained.about.get("fingerprint")
        if same and len(validation) >= FEWEST:
            others, description = validation, "validation images"
        else:
            others, description = np.setdiff1d(np.arange(len(shards)), calibration), "other training images"
        comparison = _some(labels, others, MOST, seed)
        return cls(shards, calibration, comparison, f"{len(comparison):,} {description}")


def _some(labels: np.ndarray, indices: np.ndarray, count: int, seed: int) -> np.ndarray:
    """About `count` of `indices`, or all if they are fewer: of each class as large a fraction."""
    _, chosen = sampling.holdout(labels[indices], min(1, count / max(1, len(indices))), seed)
    return indices[chosen]


def quantize(model: "onnx.ModelProto", sample: Sample) -> "onnx.ModelProto":
    """The graph with convolutions and matrix products in 8 bits, between QuantizeLinear and DequantizeLinear.

    Weights are symmetric int8 with a scale for each channel, activations uint8 over the range that they have on the
    images for calibration (Jacob et al. 2018, arXiv:1712.05877). Raises whatever onnxruntime raises.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_static(
            model,
            path,
            _Reader(sample),
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


class _Reader:
    """The images for calibration, in batches, as onnxruntime asks for them."""

    def __init__(self, sample: Sample) -> None:
        self._batches: Iterator[np.ndarray] = _batches(sample.shards, sample.calibration, "calibrating")

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._batches, None)
        return None if images is None else {"images": images}


def _batches(shards: Shards, indices: np.ndarray, description: str) -> Iterator[np.ndarray]:
    for start in progress(range(0, len(indices), _BATCH), description=description, unit=" batches"):
        yield shards.images(indices[start : start + _BATCH])


def compare(
    trained: TrainedClassifier, probabilities: Callable[[np.ndarray], np.ndarray], sample: Sample, output: Path
) -> list[str]:
    """Compares with the trained model in float32; returns a report.

    `probabilities` takes images (N, H, W) uint8 and returns (N, classes) float32. Raises UserError if the accuracy
    falls by more than MAX_FALL.
    """
    labels = sample.shards.labels(sample.comparison)
    expected, actual = (
        np.concatenate(
            [classify(images).argmax(1) for images in _batches(sample.shards, sample.comparison, "comparing")]
        )
        for classify in (trained.in_float32().probabilities, probabilities)
    )
    before, after = float((expected == labels).mean()), float((actual == labels).mean())
    accuracies = f"an accuracy of {100 * after:.2f} % where the trained model has {100 * before:.2f} %"
    if after < before - MAX_FALL:
        raise UserError(
            f"{output} was not written: on {sample.description} it has {accuracies} in float32; "
            "export without --int8."
        )
    return [
        f"Calibrated on {len(sample.calibration):,} training images.",
        f"Compared with the trained model in float32 on {sample.description}: the same class on "
        f"{100 * (actual == expected).mean():.2f} %; {accuracies}.",
    ]
