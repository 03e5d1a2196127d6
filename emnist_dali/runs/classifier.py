"""A finished run as a model that takes images."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..core import distributed
from .checkpoint import load_weights
from ..runtime import autocast, own_device, resolve
from ..core.errors import UserError
from ..core.files import reason
from ..models.build import build_model, channels_last
from ..pipelines.fused import Preprocess, Records
from ..core.progress import say
from .folder import RunFolder
from ..data.stats import Stats

if TYPE_CHECKING:
    from .onnx_classifier import OnnxClassifier

_BATCH = 256


class TrainedClassifier:
    """A run's best weights on its device, or on the CPU where that is not here.

    `classes` are in label order, `shape` is (H, W) of the images that it was trained on, `converted` whether those
    were EMNIST's or drawn like them, and not a folder of images; `about` is what the weights' file tells of itself.
    Raises UserError where the run has no weights yet or they do not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path, run = path, RunFolder(path)
        self.config = own_device(distributed.broadcast_from_main(run.config))
        if self.config.run.device.startswith("cuda") and not torch.cuda.is_available():
            auto = {"device": "auto", "amp": "auto", "backend": "auto", "compile": "auto"}
            say(f"{path} was trained on {self.config.run.device}, which is not here: taking the CPU.")
            self.config = self.config.override(auto)
        # A run's own config is resolved; one that was edited may not be.
        self.config = resolve(self.config.override({"sync_bn": False}))
        weights, self.about = distributed.broadcast_from_main(lambda: load_weights(run.best))
        self.classes = tuple(self.about["classes"])
        self.stats = Stats(*self.about["stats"])
        self.shape: tuple[int, int] = tuple(self.about.get("shape", (28, 28)))
        self.converted: bool = self.about.get("converted", True)
        self.model = build_model(replace(self.config.model, pretrained=False, weights=None), len(self.classes))
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{run.best} does not fit the model of {path} ({reason(error)}); name another run."
            ) from error
        self.model.to(self.config.run.device).eval()

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def inputs(self, images: np.ndarray) -> torch.Tensor:
        """images (N, H, W) uint8 → (N, 1, S, S) float32 on the host: what the model sees of them."""
        size = self.config.data.image_size
        out = np.empty((len(images), size, size), np.float32)
        preprocess = Preprocess(self.stats.pixel_spec(self.shape, size), compressed=False)
        preprocess.run(Records.of_images(images), np.arange(len(images)), np.empty((0, 2, 3), np.float32), out)
        return torch.from_numpy(out)[:, None]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """images (N, H, W) uint8, upright, light on dark → (N, classes) float32."""
        context, found = autocast(self.config), [np.empty((0, len(self.classes)), np.float32)]
        with torch.inference_mode(), context():
            for start in range(0, len(images), _BATCH):
                inputs = self.inputs(images[start : start + _BATCH]).to(self.config.run.device)
                found.append(self.model(channels_last(inputs)).float().softmax(-1).cpu().numpy())
        return np.concatenate(found)


def load_classifier(path: Path) -> "TrainedClassifier | OnnxClassifier":
    """What takes images, from a run folder or an exported .onnx: both have `name`, `classes`, `shape`, `converted`
    and `probabilities`."""
    if path.suffix == ".onnx":
        from .onnx_classifier import OnnxClassifier

        return OnnxClassifier(path)
    return TrainedClassifier(path)
