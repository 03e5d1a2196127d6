"""An exported .onnx as a model that takes images, through onnxruntime; no other graph is run."""

import functools
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.files import is_plain, parse_json, read_bytes, reason

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 512 * 2**20
# Of all but the weights, which protobuf makes up to 70 times as large in memory; EfficientNet-B2 has 2 MB.
MAX_GRAPH = 16 * 2**20
MAX_FIELDS = 300_000
# Of weights and activations; onnxruntime refuses what needs more.
MEMORY = 3 * 2**29
SECONDS = 60  # for a batch
MAX_CLASSES, MAX_SIDE = 256, 1024
_BATCH = 64
_DOMAINS = ("", "ai.onnx")
_WEIGHTS = (7, 5, 9)  # ModelProto.graph, .initializer, .raw_data
# Protobuf's concatenated messages are one: what these bytes begin, with 64 hex digits, is one more metadata entry.
_DIGEST = b"\x72\x4a\x0a\x06sha256\x12\x40"


class OnnxClassifier:
    """What `export` wrote, on the CPU, with `TrainedClassifier`'s `name`, `classes`, `shape`, `converted` and `probabilities`.

    `content` is the file's where it is not written yet. Raises UserError where onnx or onnxruntime is missing, where
    the file is damaged, and where it is no ONNX or none of this project's.
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
            _check_structure(content)
            model = onnx.load_model_from_string(content)
            onnx.checker.check_model(model)
        except Exception as error:  # onnx raises what protobuf and its checker do
            raise UserError(
                f"{path} could not be opened as ONNX ({reason(error)}); name a file that `emnist-dali export` wrote."
            ) from error
        self._take(model, content)
        del model  # as large as the file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # none
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            _limit_memory()
            # Folding would run parts of the graph while it is opened, where nothing can end them.
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
        except Exception as error:  # onnxruntime's errors have no base but this
            raise UserError(
                f"{path} could not be opened by onnxruntime ({reason(error)}); export it again."
            ) from error

    def _take(self, model: "onnx.ModelProto", content: bytes) -> None:
        """Checks the graph and takes what its metadata say."""
        try:
            about = {entry.key: entry.value for entry in model.metadata_props}
            _check_digest(content, "generator" in about)
            told = (parse_json(about[name]) for name in ("name", "classes", "shape", "converted"))
            name, classes, shape, converted = told
            if not is_plain(name):
                raise ValueError("its name is none")
            if not isinstance(classes, list) or not all(map(is_plain, classes)) or len(set(classes)) < len(classes):
                raise ValueError("its classes are no names, or not different")
            if not 2 <= len(classes) <= MAX_CLASSES:
                raise ValueError(f"it has {len(classes)} classes")
            if not _is_shape(shape):
                raise ValueError("its shape is no height and width")
            if not isinstance(converted, bool):
                raise ValueError("its metadata do not say whether its images were converted")
            _check_graph(model, shape, len(classes))
        except KeyError as error:
            raise UserError(
                f"{self._path} is no model of this project (its metadata lack {error}); "
                "name a file that `emnist-dali export` wrote."
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self._path} is no model of this project, or damaged ({reason(error)}); "
                "name a file that `emnist-dali export` wrote."
            ) from error
        self.name: str = name
        self.classes: tuple[str, ...] = tuple(classes)
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.converted: bool = converted

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """images (N, H, W) uint8, upright, light on dark → (N, classes) float32.

        UserError where the model fails, takes more than SECONDS for a batch or gives what are no probabilities.
        """
        found = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            answers = self._run(batch)
            if (
                answers.shape != (len(batch), len(self.classes))
                or answers.dtype != np.float32
                or not np.isfinite(answers).all()
                or answers.min() < 0
                or np.abs(answers.sum(1) - 1).max() > 1e-3
            ):
                raise UserError(f"{self._path} gives answers that are no probabilities; export it again.")
            found.append(answers)
        return np.concatenate(found)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """In a thread of its own, which is left behind where it does not end: Python exits without it."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        found: list[Any] = []

        def run() -> None:
            try:
                found.extend(self._session.run(["probabilities"], {"images": images}, options))
            except Exception as error:  # onnxruntime's errors have no base but this
                found.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(SECONDS)
        if thread.is_alive():
            options.terminate = True  # after the operation that runs now
            raise UserError(f"{self._path} takes more than {SECONDS} s for {len(images)} images; export it again.")
        if isinstance(found[0], Exception):
            raise UserError(f"{self._path} failed ({reason(found[0])}); export it again.") from found[0]
        return found[0]


def with_digest(content: bytes) -> bytes:
    """The bytes of a model with the sha256 of all of them, in its metadata and at its end."""
    return content + _DIGEST + hashlib.sha256(content).hexdigest().encode()


def _check_digest(content: bytes, expected: bool) -> None:
    """ValueError where it is wrong; files from before there was one have none."""
    rest, start, digest = content[:-76], content[-76:-64], content[-64:]
    if start == _DIGEST and digest == hashlib.sha256(rest).hexdigest().encode():
        return
    if start == _DIGEST or expected:
        raise ValueError("it was changed after it was written: its sha256 is of something else")


def _check_structure(content: bytes) -> None:
    """ValueError for what would take protobuf gigabytes; it looks at the bytes alone."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 2**20} MiB")
    weights = 0
    for count, (path, size) in enumerate(_parts(content)):
        if count > MAX_FIELDS:
            raise ValueError(f"it has more than {MAX_FIELDS:,} parts")
        weights += size if path == _WEIGHTS else 0
    if len(content) - weights > MAX_GRAPH:
        raise ValueError(f"it has more than {MAX_GRAPH // 2**20} MiB beside its weights")


def _parts(content: bytes) -> Iterator[tuple[tuple[int, ...], int]]:
    """Numbers, from the outermost, and size of each field of a model, its graph and its initializers."""
    todo = [((), 0, len(content))]
    while todo:
        above, start, end = todo.pop()
        for number, first, last in _fields(content, start, end):
            path = (*above, number)
            yield path, last - first
            if path in (_WEIGHTS[:1], _WEIGHTS[:2]):
                todo.append((path, first, last))


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a protobuf message; start and end are equal for a number."""
    while at < end:
        tag, at = _varint(content, at, end)
        length = 0
        if tag & 7 == 0:
            _, at = _varint(content, at, end)
        elif tag & 7 == 2:
            length, at = _varint(content, at, end)
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            raise ValueError("it holds a group")
        if at + length > end:
            raise ValueError("it is cut off")
        yield tag >> 3, at, at + length
        at += length


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is cut off")
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    raise ValueError("it holds a number of more than 64 bits")


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(side) is int and 1 <= side <= MAX_SIDE for side in shape)
    )


def _check_graph(model: "onnx.ModelProto", shape: list[int], classes: int) -> None:
    """ValueError for a graph that `export` does not write: control flow could run for ever."""
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise ValueError("it holds functions, a training or sparse weights")
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise ValueError(f"its operation {node.op_type} is of {node.domain}")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise ValueError(f"its operation {node.op_type} holds another graph")
            tensors += [attribute.t, *attribute.tensors]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise ValueError("it needs other files")
    if [_type(value) for value in graph.input] != [("images", 2, (None, *shape))]:  # uint8
        raise ValueError("its inputs are not images of that shape")
    if [_type(value) for value in graph.output] != [("probabilities", 1, (None, classes))]:  # float32
        raise ValueError("its outputs are not probabilities of those classes")


def _type(value: "onnx.ValueInfoProto") -> tuple[str, int, tuple[int | None, ...]]:
    tensor = value.type.tensor_type
    sides = (side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)
    return value.name, tensor.elem_type, tuple(sides)


@functools.cache
def _limit_memory() -> None:
    """Of all sessions that use the allocators of onnxruntime's environment, once for this process."""
    import onnxruntime

    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    as_requested = 1  # not the next power of two
    arena = onnxruntime.OrtArenaCfg({"max_mem": MEMORY, "arena_extend_strategy": as_requested})
    onnxruntime.create_and_register_allocator(where, arena)
