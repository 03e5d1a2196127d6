"""An exported .onnx as a model that takes images, through onnxruntime."""

import json
from pathlib import Path

import numpy as np

from .errors import UserError
from .files import is_plain, reason

_BATCH = 256


class Exported:
    """What `export` wrote, on the CPU, with `Trained`'s `name`, `classes`, `shape`, `converted` and `probabilities`.

    `content` is the file's where it is not written yet. Raises UserError where onnxruntime is missing, and where the
    file is no ONNX or none of this project's.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"onnxruntime could not be imported ({error}); pip install 'emnist-dali[export]'."
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        try:
            content = path.read_bytes() if content is None else content
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no base but this
            raise UserError(
                f"{path} could not be opened as ONNX ({reason(error)}); name a file that `emnist-dali export` wrote."
            ) from error
        try:
            about = self._session.get_modelmeta().custom_metadata_map
            told = (json.loads(about[name]) for name in ("name", "classes", "shape", "converted"))
            self.name, classes, shape, self.converted = told
            self.classes, self.shape = tuple(classes), tuple(shape)
            (images,), (probabilities,) = self._session.get_inputs(), self._session.get_outputs()
            if not all(map(is_plain, (self.name, *self.classes))):
                raise ValueError("its classes are no names")
            if (*images.shape[1:], *probabilities.shape[1:]) != (*self.shape, len(self.classes)):
                raise ValueError("its metadata are of another model")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is no model of this project ({reason(error)}); name a file that `emnist-dali export` wrote."
            ) from error

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """images (N, H, W) uint8, upright, light on dark → (N, classes) float32."""
        found = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), _BATCH):
            found += self._session.run(["probabilities"], {"images": images[start : start + _BATCH]})
        return np.concatenate(found)
