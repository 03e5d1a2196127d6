"""Hostile ONNX files: the file, or its answers, are refused in one sentence."""

import json
import os
import random

import numpy as np
import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import MARK, is_plain
from emnist_dali.runs import onnx_classifier
from emnist_dali.runs.onnx_checks import append_digest
from emnist_dali.runs.onnx_classifier import OnnxClassifier

from .tally import FACTOR, SEED, tried

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

CLASSES, SHAPE = ["0", "1", "A"], [6, 5]
ABOUT = {"name": "run", "classes": CLASSES, "shape": SHAPE, "converted": False}
IMAGES = np.random.default_rng(0).integers(0, 256, (70, *SHAPE), np.uint8)
WEIGHTS = np.linspace(-1, 1, 90).reshape(30, 3).astype(np.float32)


def values(name, kind, *sides):
    return helper.make_tensor_value_info(name, kind, sides)


def node(kind, given, made, **attributes):
    return helper.make_node(kind, given.split(), made.split(), **attributes)


def numbers(name, *value, kind=TensorProto.INT64):
    return helper.make_tensor(name, kind, [len(value)], value)


NET = [
    node("Cast", "images", "float", to=TensorProto.FLOAT),
    node("Flatten", "float", "flat"),
    node("MatMul", "flat weights", "logits"),
    node("Softmax", "logits", "probabilities"),
]


def graph(nodes=NET, inputs=None, outputs=None, constants=()):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            inputs or [values("images", TensorProto.UINT8, "batch", *SHAPE)],
            outputs or [values("probabilities", TensorProto.FLOAT, "batch", 3)],
            [helper.make_tensor("weights", TensorProto.FLOAT, [30, 3], WEIGHTS.tobytes(), raw=True), *constants],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def encoded(model, about=ABOUT):
    for name, value in ({"generator": MARK} | about).items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    return append_digest(model.SerializeToString())


def refused(path, content, reason="."):
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        OnnxClassifier(path).probabilities(IMAGES)
    message = str(error.value)
    assert is_plain(message)
    assert message.endswith(".")
    assert len(message) < 500 + len(str(path))


def test_a_graph_of_this_project_is_accepted(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(encoded(graph()))
    exported = OnnxClassifier(path)
    found = exported.probabilities(IMAGES)
    logits = IMAGES.reshape(70, 30).astype(np.float32) @ WEIGHTS
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found, shares / shares.sum(1, keepdims=True), atol=1e-5)
    assert (exported.name, exported.classes, exported.shape, exported.converted) == (
        "run",
        ("0", "1", "A"),
        (6, 5),
        False,
    )


def in_8_bits(domain=""):
    """Quantizes the images and the weights, as `export --int8` does."""
    scale, zero = (
        helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]),
        numbers("zero", 0, kind=TensorProto.UINT8),
    )
    zero.ClearField("dims")
    model = graph(
        [
            *NET[:2],
            node("QuantizeLinear", "flat scale zero", "levels", domain=domain),
            node("DequantizeLinear", "levels scale zero", "again", domain=domain),
            node("MatMul", "again weights", "logits"),
            NET[-1],
        ],
        constants=[scale, zero],
    )
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def test_a_graph_in_8_bits_is_accepted(tmp_path):
    """A scale of 1 changes nothing."""
    for name, model in (("float", graph()), ("int8", in_8_bits())):
        (tmp_path / f"{name}.onnx").write_bytes(encoded(model))
    exact, int8 = (OnnxClassifier(tmp_path / f"{name}.onnx").probabilities(IMAGES) for name in ("float", "int8"))
    np.testing.assert_allclose(int8, exact, atol=1e-5)


def test_files_from_before_the_checksum_are_accepted(tmp_path):
    path, model = tmp_path / "model.onnx", graph()
    for name, value in ABOUT.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    path.write_bytes(model.SerializeToString())
    assert OnnxClassifier(path).probabilities(IMAGES).shape == (70, 3)


def test_the_checksum_is_the_last_metadata_entry():
    content = encoded(graph())
    entries = {entry.key: entry.value for entry in onnx.load_model_from_string(content).metadata_props}
    assert len(entries) == 6
    assert content.endswith(entries["sha256"].encode())
    assert content == append_digest(content[:-76])


def test_any_changed_byte_is_detected(tmp_path):
    content = encoded(graph())
    places = range(0, len(content), 23) if FACTOR == 1 else range(len(content))
    for at in [*places, *range(len(content) - 80, len(content))]:
        tried()
        broken = bytearray(content)
        broken[at] ^= 1 << at % 8
        refused(tmp_path / "model.onnx", bytes(broken))
        refused(tmp_path / "model.onnx", content[:at])


BODY = helper.make_graph(
    [node("Identity", "go", "again"), node("Identity", "kept", "next")],
    "body",
    [
        values("turn", TensorProto.INT64),
        values("go", TensorProto.BOOL),
        values("kept", TensorProto.FLOAT, None, None),
    ],
    [values("again", TensorProto.BOOL), values("next", TensorProto.FLOAT, None, None)],
)
BRANCH = helper.make_graph(
    [node("Identity", "probable", "out")], "branch", [], [values("out", TensorProto.FLOAT, None, None)]
)
TRUE, ENDLESS = numbers("true", 1, kind=TensorProto.BOOL), numbers("endless", 2**62)
BEFORE = [*NET[:-1], node("Softmax", "logits", "probable")]
FUNCTION = helper.make_function(
    "ours", "F", ["x"], ["y"], [node("Identity", "x", "y")], [helper.make_opsetid("", 20)]
)


def with_function():
    model = graph([*BEFORE, helper.make_node("F", ["probable"], ["probabilities"], domain="ours")])
    model.functions.append(FUNCTION)
    model.opset_import.append(helper.make_opsetid("ours", 1))
    return model


def external(model):
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    return model


def domain(name):
    model = graph([*BEFORE, helper.make_node("Inverse", ["probable"], ["probabilities"], domain=name)])
    model.opset_import.append(helper.make_opsetid(name, 1))
    return model


def named(old, new):
    model = graph()
    for place in model.graph.node:
        place.input[:] = [new if name == old else name for name in place.input]
        place.output[:] = [new if name == old else name for name in place.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    return model


def twice(model):
    model.metadata_props.add(key="classes", value=json.dumps(["x", "y", "z"]))
    return model


def sum_of(what, *shape):
    """Adds 0 times the sum of a tensor of that shape to the answers, so that it must be computed."""
    return graph(
        [
            *BEFORE,
            node("ReduceSum", "float", "total", keepdims=0),
            node("Expand", "total shape", "large"),
            node(*what),
            node("ReduceSum", "made", "sum", keepdims=0),
            node("Mul", "sum zero", "nothing"),
            node("Add", "probable nothing", "probabilities"),
        ],
        constants=[numbers("shape", *shape), helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])],
    )


def answers(*nodes, constants=()):
    return graph([*BEFORE, *nodes], constants=constants)


GRAPHS = {
    "an endless loop": (graph([*BEFORE, node("Loop", "endless true probable", "probabilities", body=BODY)],
                              constants=[TRUE, ENDLESS]), "another graph"),
    "a branch": (graph([*BEFORE, node("If", "true", "probabilities", then_branch=BRANCH, else_branch=BRANCH)],
                       constants=[TRUE]), "another graph"),
    "a function": (with_function(), "functions"),
    "weights in another file": (external(graph()), "."),
    "an operation of onnxruntime": (domain("com.microsoft"), "com.microsoft"),
    "8 bits of onnxruntime's own": (in_8_bits("com.microsoft"), "com.microsoft"),
    "an operation of nobody": (domain("evil"), "evil"),
    "another input's name": (named("images", "pixels"), "inputs"),
    "another output's name": (named("probabilities", "softmax"), "outputs"),
    "a second input": (graph(inputs=[values("images", TensorProto.UINT8, "batch", *SHAPE),
                                     values("more", TensorProto.UINT8, 1)]), "inputs"),
    "a second output": (graph(outputs=[values("probabilities", TensorProto.FLOAT, "batch", 3),
                                       values("logits", TensorProto.FLOAT, "batch", 3)]), "outputs"),
    "float images": (graph(NET[1:], inputs=[values("images", TensorProto.FLOAT, "batch", *SHAPE)]), "."),
    "images of another size": (graph(inputs=[values("images", TensorProto.UINT8, "batch", 5, 6)]), "inputs"),
    "images of any size": (graph(inputs=[values("images", TensorProto.UINT8, "batch", "h", "w")]), "inputs"),
    "one image at a time": (graph(inputs=[values("images", TensorProto.UINT8, 1, *SHAPE)]), "inputs"),
    "another number of classes": (graph(outputs=[values("probabilities", TensorProto.FLOAT, "batch", 4)]), "outputs"),
    "classes twice": (twice(graph()), "duplicate"),
    "no probabilities but logits": (graph([*NET[:2], node("MatMul", "flat weights", "probabilities")]), "no valid"),
    "not a number": (answers(node("Log", "probable", "below"), node("Sqrt", "below", "probabilities")), "no valid"),
    "infinite": (answers(node("Sub", "probable probable", "zero"), node("Div", "probable zero", "probabilities")),
                 "no valid probabilities"),
    "fewer answers than images": (answers(node("Slice", "probable one two", "probabilities"),
                                          constants=[numbers("one", 1), numbers("two", 2)]), "."),
    "a failure": (answers(node("Reshape", "probable shape", "probabilities"),
                          constants=[numbers("shape", 7, 3)]), "failed"),
    "12 GB": (sum_of(("Exp", "large", "made"), 3 * 2**30), "failed"),
    "memory without end": (sum_of(("Exp", "large", "made"), 2**60), "."),
}  # fmt: skip


@pytest.mark.parametrize(("model", "reason"), GRAPHS.values(), ids=GRAPHS)
def test_a_foreign_graph_is_refused(tmp_path, model, reason):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    refused(tmp_path / "model.onnx", encoded(copy), reason)


FACTS = {
    "name": [None, 5, "a\nb", "x" * 5000, ["run"]],
    "classes": [
        None,
        5,
        "01A",
        [],
        ["0"],
        ["0", "0", "1"],
        ["0", "1", 2],
        ["0", "1", "\x1b[2J"],
        {"0": 1},
        [["0"]] * 3,
    ],
    "shape": [None, 28, [6], [6, 5, 1], [5, 6], [6.0, 5.0], [True, 5], [0, 5], [-6, 5], [6, 10**9], "65", {"6": 5}],
    "converted": [None, 0, "no", []],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, odd in FACTS.items() for value in odd])
def test_invalid_metadata_are_refused(tmp_path, name, value):
    refused(tmp_path / "model.onnx", encoded(graph(), ABOUT | {name: value}))
    without = {key: value for key, value in ABOUT.items() if key != name}
    refused(tmp_path / "model.onnx", encoded(graph(), without), "lack")


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
def test_metadata_that_are_not_json_are_refused(tmp_path, text):
    model = graph()
    for name, value in ABOUT.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    content = model.SerializeToString().replace(b'"run"', text if isinstance(text, bytes) else text.encode())
    refused(tmp_path / "model.onnx", content)


def varint(number):
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def field(number, body):
    return varint(number << 3 | 2) + varint(len(body)) + body


FLOODS = {
    "empty nodes": field(7, field(1, b"") * 10**6),
    "attributes of one node": field(7, field(1, field(5, b"") * 10**7)),
    "numbers in one tensor": field(7, field(5, field(7, b"\0" * 2 * 10**7))),
    "metadata": field(14, b"") * 10**6,
    "groups": b"\x0b" * 1000,
    "deep messages": field(7, b"") * 10 + b"\x3a" * 1000,
    "a length beyond its end": b"\x3a\xff\xff\xff\xff\x0f",
    "nothing": b"",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("content", FLOODS.values(), ids=FLOODS)
def test_bytes_that_would_cost_protobuf_gigabytes_are_refused(tmp_path, content):
    refused(tmp_path / "model.onnx", content)


def test_random_damage(tmp_path):
    """Without a checksum, as in older files: anything that loads returns probabilities."""
    chance = random.Random(SEED)
    model, path = graph(), tmp_path / "model.onnx"
    for name, value in ABOUT.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    content = model.SerializeToString()
    for _ in range(100 * FACTOR):
        tried()
        broken = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(broken)
        try:
            OnnxClassifier(path).probabilities(IMAGES)
        except UserError as error:
            assert is_plain(str(error))  # noqa: PT017


def test_a_slow_graph_is_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_classifier, "TIMEOUT", 0.01)
    chain = [node("MatMul", f"m{i} m{i}", f"m{i + 1}") for i in range(200)]  # 54 GFLOP: seconds, whatever the machine
    slow = sum_of(("Reshape", "large square", "m0"), 2**18)
    slow.graph.node.extend(chain)
    slow.graph.initializer.append(numbers("square", 512, 512))
    nodes = [place for place in slow.graph.node if place.output[0] != "sum"]
    at = next(i for i, place in enumerate(nodes) if place.output[0] == "m0") + 1
    ordered = [*nodes[:at], *chain, node("ReduceSum", "m200", "sum", keepdims=0), *nodes[at : -len(chain)]]
    del slow.graph.node[:]
    slow.graph.node.extend(ordered)
    refused(tmp_path / "model.onnx", encoded(slow), "takes more than")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "nothing"])
def test_anything_but_a_regular_file_is_refused(tmp_path, what):
    model = tmp_path / "model.onnx"
    if what == "pipe":
        os.mkfifo(model)
    elif what == "device":
        model.symlink_to("/dev/zero")
    elif what == "folder":
        model.mkdir()
    with pytest.raises(UserError, match=r"could not be opened as ONNX \(it is not a regular file\)"):
        OnnxClassifier(model)
