"""A `Classifier` from a run folder: the run's best weights, run by torch."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..config import Model
from ..core import distributed
from ..core.errors import UserError
from ..core.files import reason
from ..core.progress import progress, say
from ..data.stats import Stats
from ..models.build import build_model, channels_last
from ..models.import_path import is_import_path
from ..pipelines.fused import Preprocess, Records
from ..runtime import autocast, has_gpu, resolve, with_local_device
from .calibration import Calibration
from .checkpoint import load_weights
from .folder import RunFolder
from .typicality import Typicality

_BATCH = 256


class TrainedClassifier:
    """A `Classifier` with a run's best weights, on the run's device, or on the CPU if this machine has no GPU.

    `about` is the metadata of the weights, `name` the folder's if none is given. Raises UserError if there are no
    weights yet, if they do not fit the model, or if that is the user's own and is not trusted (`models.trust`).
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        run = RunFolder(path)
        self.path, self.name = run.path, name or run.path.resolve().name
        self.config = with_local_device(distributed.broadcast_from_main(run.config))
        if self.config.run.device.startswith("cuda") and not has_gpu():
            say(f"{path} was trained on {self.config.run.device}, which torch does not have here: using the CPU.")
            auto = dict.fromkeys(("device", "amp", "backend"), "auto")
            self.config = self.config.override(auto)
        elif distributed.world_size() == 1 and self.config.run.device.startswith("cuda:"):
            here = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
            self.config = self.config.override({} if self.config.run.device in here else {"device": "cuda"})
        # The config of a run is resolved already, unless it was edited.
        self.config = resolve(self.config.override({"sync_bn": False}))
        weights, self.about = distributed.broadcast_from_main(lambda: load_weights(run.best))
        self.classes: tuple[str, ...] = tuple(self.about["classes"])
        self.shape: tuple[int, int] = tuple(self.about.get("shape", (28, 28)))
        self.converted: bool = self.about.get("converted", True)
        self.stats = Stats(*self.about["stats"])
        self.calibration = Calibration(*self.about.get("calibration", ()))
        self.thresholds: list[float] | None = self.about.get("thresholds")
        fitted = self.about.get("typicality")
        self.typicality: Typicality | None = Typicality.from_json(fitted) if fitted else None
        untrained = replace(self.config.model, pretrained=False, weights=None)
        network = (untrained, len(self.classes), self.config.data.image_size)
        try:
            if outline := _without_memory(*network):
                outline.load_state_dict(weights, assign=True)
            self.model = build_model(*network)
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{run.best} does not fit the model in {path} ({reason(error)}); choose another run."
            ) from error
        self.model.to(self.config.run.device).eval()

    def in_float32(self) -> "TrainedClassifier":
        """The same model without autocast, whatever precision the run used."""
        other = copy.copy(self)
        other.config = self.config.override({"amp": "off"})
        return other

    def preprocess(self, images: np.ndarray) -> torch.Tensor:
        """(N, H, W) uint8 → (N, 1, S, S) float32 on the host, as the model sees them.

        Raises UserError for images of another type or shape.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            height, width = self.shape
            raise UserError(
                f"{self.name} takes images (N, {height}, {width}) uint8, not {images.shape} {images.dtype}; convert "
                "or resize them."
            )
        size = self.config.data.image_size
        out = np.empty((len(images), size, size), np.float32)
        preprocess = Preprocess(self.stats.pixel_spec(self.shape, size), compressed=False)
        preprocess.run(Records.of_images(images), np.arange(len(images)), np.empty((0, 2, 3), np.float32), out)
        return torch.from_numpy(out)[:, None]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) uint8 → (N, classes) float32; raises UserError for images of another type or shape."""
        images = np.asarray(images)
        context, batches = autocast(self.config), [np.empty((0, len(self.classes)), np.float32)]
        with torch.inference_mode(), context():
            for start in progress(range(0, len(images), _BATCH), description="recognizing", unit=" batches"):
                inputs = self.preprocess(images[start : start + _BATCH]).to(self.config.run.device)
                batches.append(self.calibration(self.model(channels_last(inputs)).float()).cpu().numpy())
        return np.concatenate(batches)


def _without_memory(model: Model, classes: int, image_size: int) -> torch.nn.Module | None:
    """The names and shapes of the weights, in 8 ms for `cpu`'s network: settings from elsewhere may name one of
    gigabytes, which is not to be built before it is known to fit. None for the user's own, and where torch cannot.
    """
    if is_import_path(model.model):
        return None
    try:
        with torch.device("meta"):
            return build_model(model, classes, image_size)
    except Exception:  # what is not the device's fault is raised again with memory
        return None
