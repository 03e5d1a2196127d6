"""Checks of untrusted ONNX files: only a graph like those that `export` writes, whole, is ever run."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 512 * 2**20
# Bytes without the weights: protobuf takes up to 70 times as much memory for them. EfficientNet-B2 has 2 MB.
MAX_GRAPH_BYTES = 16 * 2**20
MAX_FIELDS = 300_000
_DOMAINS = ("", "ai.onnx")
_WEIGHTS = (7, 5, 9)  # field numbers of ModelProto.graph, .initializer, .raw_data
# Concatenated protobuf messages are merged: these bytes start one more metadata entry, of 64 hex digits.
_DIGEST = b"\x72\x4a\x0a\x06sha256\x12\x40"


def append_digest(content: bytes) -> bytes:
    """The bytes of a model, with their sha256 as the last entry of its metadata."""
    return content + _DIGEST + hashlib.sha256(content).hexdigest().encode()


def check_digest(content: bytes, required: bool) -> None:
    """Raises ValueError if the sha256 does not match; files from before there was one have none."""
    rest, start, digest = content[:-76], content[-76:-64], content[-64:]
    if start == _DIGEST and digest == hashlib.sha256(rest).hexdigest().encode():
        return
    if start == _DIGEST or required:
        raise ValueError("its sha256 does not match: it was damaged or changed after it was written")


def check_bytes(content: bytes) -> None:
    """Raises ValueError for bytes that would cost protobuf gigabytes, without parsing them."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 2**20} MiB")
    weights = 0
    for count, (path, size) in enumerate(_all_fields(content)):
        if count > MAX_FIELDS:
            raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
        weights += size if path == _WEIGHTS else 0
    if len(content) - weights > MAX_GRAPH_BYTES:
        raise ValueError(f"it has more than {MAX_GRAPH_BYTES // 2**20} MiB without its weights")


def _all_fields(content: bytes) -> Iterator[tuple[tuple[int, ...], int]]:
    """Path of field numbers, and size in bytes, of each field of a model, its graph and its initializers."""
    messages = [((), 0, len(content))]
    while messages:
        parent, start, end = messages.pop()
        for number, first, last in _fields(content, start, end):
            path = (*parent, number)
            yield path, last - first
            if path in (_WEIGHTS[:1], _WEIGHTS[:2]):
                messages.append((path, first, last))


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
            raise ValueError("it contains a protobuf group")
        if at + length > end:
            raise ValueError("it is truncated")
        yield tag >> 3, at, at + length
        at += length


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is truncated")
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    raise ValueError("it contains a number of more than 64 bits")


def check_graph(model: "onnx.ModelProto", shape: Sequence[int], classes: int) -> None:
    """Raises ValueError for a graph that `export` does not write: with control flow, it could run forever."""
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise ValueError("it contains functions, training information or sparse weights")
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise ValueError(f"its operator {node.op_type} is from {node.domain}")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise ValueError(f"its operator {node.op_type} contains another graph")
            tensors += [attribute.t, *attribute.tensors]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise ValueError("it refers to other files")
    if [_signature(value) for value in graph.input] != [("images", 2, (None, *shape))]:  # uint8
        raise ValueError("its inputs are not images of its shape")
    if [_signature(value) for value in graph.output] != [("probabilities", 1, (None, classes))]:  # float32
        raise ValueError("its outputs are not probabilities of its classes")


def _signature(value: "onnx.ValueInfoProto") -> tuple[str, int, tuple[int | None, ...]]:
    """Name, element type and shape; None for a dynamic dimension."""
    tensor = value.type.tensor_type
    shape = (side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)
    return value.name, tensor.elem_type, tuple(shape)
