"""A `Classifier` from an .onnx file that `export` wrote, run by onnxruntime on the CPU."""

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.files import is_plain, parse_json, read_bytes, reason
from ..core.progress import progress
from ..data.idx import MAX_SIDE
from ..data.sources import MAX_CLASSES
from .onnx_checks import MAX_BYTES, check_bytes, check_digest, check_graph
from .prediction_sets import is_thresholds
from .typicality import Typicality, is_typicality

if TYPE_CHECKING:
    import onnx

# Bytes for weights and activations; onnxruntime fails if a model needs more.
MAX_MEMORY = 3 * 2**29
TIMEOUT = 60  # seconds per batch
_BATCH = 64
_ADVICE = "choose a file that `emnist-dali export` wrote"


class OnnxClassifier:
    """A `Classifier` from an exported ONNX file.

    `content` replaces that of the file, which is then not read. Raises UserError if onnx or onnxruntime is missing,
    and if the file is damaged, not ONNX or not from emnist-dali.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{error.name} could not be imported ({error}); pip install 'emnist-dali[export]'."
            ) from error
        self._path = path
        try:
            content = read_bytes(path, MAX_BYTES) if content is None else content
            check_bytes(content)
            model = onnx.load_model_from_string(content)
            onnx.checker.check_model(model)
        except Exception as error:  # whatever protobuf and onnx's checker raise
            raise UserError(f"{path} could not be opened as ONNX ({reason(error)}); {_ADVICE}.") from error
        self._read_metadata(model, content)
        del model  # as large as the file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # nothing
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            _limit_memory()
            # Constant folding would run parts of the graph while it is loaded, without a timeout.
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
        except Exception as error:  # onnxruntime's errors have no other base class
            raise UserError(
                f"{path} could not be opened by onnxruntime ({reason(error)}); export it again."
            ) from error

    def _read_metadata(self, model: "onnx.ModelProto", content: bytes) -> None:
        """Sets the public attributes, after checking the sha256, the metadata and the graph."""
        try:
            about = {entry.key: entry.value for entry in model.metadata_props}
            check_digest(content, required="generator" in about)
            name, classes, shape, converted = (
                parse_json(about[key]) for key in ("name", "classes", "shape", "converted")
            )
            if not is_plain(name):
                raise ValueError("its name is not plain text")
            if not isinstance(classes, list) or not all(map(is_plain, classes)) or len(set(classes)) < len(classes):
                raise ValueError("its classes are not distinct names")
            if not 2 <= len(classes) <= MAX_CLASSES:
                raise ValueError(f"it has {len(classes)} classes")
            if not _is_shape(shape):
                raise ValueError("its shape is not a height and a width")
            if not isinstance(converted, bool):
                raise ValueError("its `converted` is not a boolean")
            thresholds, typicality = (parse_json(about.get(key, "null")) for key in ("thresholds", "typicality"))
            if thresholds is not None and not is_thresholds(thresholds):
                raise ValueError("its thresholds are invalid")
            if typicality is not None and not is_typicality(typicality, len(classes)):
                raise ValueError("its typicality is invalid")
            check_graph(model, shape, len(classes))
        except KeyError as error:
            raise UserError(
                f"{self._path} is not from emnist-dali (its metadata lack {error}); {_ADVICE}."
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self._path} is damaged or not from emnist-dali ({reason(error)}); {_ADVICE}."
            ) from error
        self.name: str = name
        self.classes: tuple[str, ...] = tuple(classes)
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.converted: bool = converted
        self.thresholds: list[float] | None = thresholds
        self.typicality: Typicality | None = Typicality.from_json(typicality) if typicality else None

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) uint8 → (N, classes) float32.

        Raises UserError if the model fails, takes more than TIMEOUT for a batch, or returns anything else.
        """
        batches = [np.empty((0, len(self.classes)), np.float32)]
        for start in progress(range(0, len(images), _BATCH), description="recognizing", unit=" batches"):
            batch = images[start : start + _BATCH]
            probabilities = self._run(batch)
            if (
                probabilities.shape != (len(batch), len(self.classes))
                or probabilities.dtype != np.float32
                or not np.isfinite(probabilities).all()
                or probabilities.min() < 0
                or np.abs(probabilities.sum(1) - 1).max() > 1e-3
            ):
                raise UserError(f"{self._path} returns no valid probabilities; export it again.")
            batches.append(probabilities)
        return np.concatenate(batches)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """Runs the session in a daemon thread: after TIMEOUT it is abandoned, and Python can exit without it."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        outputs: list[Any] = []

        def run() -> None:
            try:
                outputs.extend(self._session.run(["probabilities"], {"images": images}, options))
            except Exception as error:  # onnxruntime's errors have no other base class
                outputs.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(TIMEOUT)
        if thread.is_alive():
            options.terminate = True  # after the current operator
            raise UserError(f"{self._path} takes more than {TIMEOUT} s for {len(images)} images; export it again.")
        if isinstance(outputs[0], Exception):
            raise UserError(f"{self._path} failed ({reason(outputs[0])}); export it again.") from outputs[0]
        return outputs[0]


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(side) is int and 1 <= side <= MAX_SIDE for side in shape)
    )


@functools.cache
def _limit_memory() -> None:
    """Limits all sessions that use onnxruntime's shared allocator, once per process."""
    import onnxruntime

    device = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    as_requested = 1  # instead of the next power of two
    arena = onnxruntime.OrtArenaCfg({"max_mem": MAX_MEMORY, "arena_extend_strategy": as_requested})
    onnxruntime.create_and_register_allocator(device, arena)
