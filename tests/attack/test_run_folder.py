"""Damaged run folders, with valid checksums or not: a result or one sentence.

ATTACK_FACTOR=20 tries twenty times as many, and others each time. What failed once is tried every time: FOUND.
"""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emnist_dali.core import tensor_files
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.data.stats import statistics
from emnist_dali.deploy import export as exporting
from emnist_dali.evaluation.significance import compare
from emnist_dali.reports.run_report import write_report
from emnist_dali.runs import schema
from emnist_dali.runs.checkpoint import load_state, load_weights, save_state
from emnist_dali.runs.file_names import LAST
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.predictions import read_predictions
from emnist_dali.training import resume
from emnist_dali.training.session import Session, train

from ..fuzz.mutate import ODD, sealed
from ..training_runs import equal
from .tally import FACTOR, SEED, running, tried

FLIPS = 200  # of each file
VALUES = [
    *ODD, "y" * 3000, "\x1b]0;x\x07", "a\u2028b", "cuda", "efficientnet_b0", -0.0, 1e-320, 1e30, 10**12, 10**18,
    [0.1, 0.2, None], [0.0, 0.0], [[1] * 300] * 300,
]  # fmt: skip
TENSORS = [
    torch.zeros(0), torch.zeros(()), torch.zeros(1).expand(10**11), torch.full((108, 12), torch.nan).half(),
    torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse(),
]  # fmt: skip
BEST, PREDICTIONS = "checkpoints/best.safetensors", "predictions-test.safetensors"
JSON = ("config.json", "env.json", "metrics.jsonl", BEST)
FILES = (*JSON, PREDICTIONS, LAST)
REMOVED = object()

# (file, path to the value, its new value): inputs that once raised another exception.
FOUND: list[tuple[str, tuple, Any]] = [
    ("config.json", ("data", "data_dir"), "y" * 3000),
    ("config.json", ("run", "device"), "cuda"),
    ("config.json", ("run",), REMOVED),
    ("env.json", ("packages",), [1]),
    ("env.json", ("resumed",), []),
    ("env.json", ("resumed",), [{}]),
    ("metrics.jsonl", (0, "epochs_done"), "1"),
    ("metrics.jsonl", (-2, "images"), 0),
    ("metrics.jsonl", (-2, "per_class"), REMOVED),
    ("metrics.jsonl", (-2, "accuracy"), 2.5),
    (BEST, ("data",), REMOVED),
    (BEST, ("epochs_done",), "x"),
    (BEST, ("val_accuracy",), None),
    (LAST, ("step",), "x"),
    (LAST, ("log",), [None]),
]


def seeds(number: int) -> Iterator[int]:
    draw = random.Random(f"{SEED} {running()}")
    for i in range(number * FACTOR):
        tried()
        yield i if FACTOR == 1 else draw.getrandbits(48)


@pytest.fixture(scope="module")
def whole(trained_run) -> dict[str, bytes]:
    return {name: (trained_run / name).read_bytes() for name in FILES}


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    return shutil.copytree(trained_run, tmp_path / "run")


def content_of(run: Path, name: str) -> Any:
    """The content of the file as dicts and lists."""
    if name == "metrics.jsonl":
        return RunFolder(run).entries()
    if name == BEST:
        return load_weights(run / BEST)[1]
    if name == PREDICTIONS:
        return tensor_files.decode(run / PREDICTIONS, "predictions")[0]
    return load_state(run / LAST) if name == LAST else read_json(run / name)


def write(run: Path, name: str, content: Any) -> None:
    """With a valid checksum."""
    if name == "metrics.jsonl":
        entries = content if isinstance(content, list) else [content]
        lines = (schema.to_line(entry) if isinstance(entry, dict) else json.dumps(entry) + "\n" for entry in entries)
        (run / name).write_bytes("".join(lines).encode("utf-8", "surrogatepass"))
    elif name == BEST:
        tensors, _ = tensor_files.decode(run / BEST, "weights")
        (run / BEST).write_bytes(tensor_files.encode(tensors, {"about": json.dumps(content)}))
    elif name == PREDICTIONS:
        tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
        tensors = {key: tensor.to_dense() for key, tensor in tensors.items() if tensor.numel() < 10**6}
        _, metadata = tensor_files.decode(run / name, "predictions")
        (run / name).write_bytes(tensor_files.encode(tensors, metadata))
    elif name == LAST:
        save_state(run / LAST, content)
    else:
        (run / name).write_bytes(sealed(content))


def read_all(run: Path, name: str, other: Path) -> list[str]:
    """Runs everything that reads the file `name` of a run folder; returns the refusals."""
    refused = []
    readers: dict[Callable, set[str]] = {
        lambda: write_report([run], run.parent / "page.html"): {*JSON, PREDICTIONS},
        lambda: exporting.export(run, "safetensors", run.parent / "model.safetensors"): {*JSON} - {"env.json"},
        lambda: compare(run, other): {PREDICTIONS},
        lambda: train(*resume.load(run / LAST, None, {}), force=True): {LAST},
    }
    for read in (read for read, files in readers.items() if name in files):
        try:
            read()
        except UserError as error:
            message = str(error)
            assert message.isprintable(), message
            assert message.endswith(".")
            assert len(message) < 1_000 + 2 * len(str(run))
            refused.append(message)
    return refused


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Skips the comparison of exported models, and all training."""
    monkeypatch.setattr(exporting, "_compare", lambda *_: ["not compared"])
    monkeypatch.setattr(Session, "train", lambda session, resumed: None)


def test_an_intact_run_is_accepted(run, trained_run):
    for name in FILES:
        write(run, name, content_of(run, name))
    assert [read_all(run, name, trained_run) for name in FILES] == [[]] * len(FILES)


def name_of(case: tuple) -> str:
    return f"{case[0]} {case[1]} {'REMOVED' if case[2] is REMOVED else f'{case[2]!r:.20}'}"


@pytest.mark.parametrize("case", FOUND, ids=name_of)
def test_past_failures_are_refused_or_read(case, run, trained_run):
    name, (*way, key), value = case
    content = node = content_of(run, name)
    for step in way:
        node = node[step]
    if value is REMOVED:
        del node[key]
    else:
        node[key] = value
    write(run, name, content)
    read_all(run, name, trained_run)


def somewhere(root: list, chance: random.Random) -> tuple[Any, Any]:
    """A container in `root` and one of its keys; the few near the top are as likely as the many below."""
    container, key = root, 0
    while isinstance(container[key], dict | list) and container[key] and chance.random() < 0.7:
        container = container[key]
        key = chance.choice(list(container) if isinstance(container, dict) else range(len(container)))
    return container, key


def mutated(content: Any, chance: random.Random, values: list) -> Any:
    """One to three of its values replaced, removed, added or nested."""
    root = [copy.deepcopy(content)]
    for _ in range(chance.randint(1, 3)):
        container, key = somewhere(root, chance)
        odd = copy.copy(chance.choice(values))
        edit = chance.choice(("replace", "replace", "replace", "remove", "add", "nest"))
        if edit == "remove" and container is not root:
            del container[key]
        elif edit == "add" and isinstance(container[key], dict):
            container[key][chance.choice(("extra", "a\nb", "val_extra", 3))] = odd
        elif edit == "add" and isinstance(container[key], list):
            container[key].append(odd)
        elif edit == "nest":
            for _ in range(chance.choice((1, 60))):
                container[key] = [container[key]]
        else:
            container[key] = odd
    return root[0]


@pytest.mark.parametrize(("name", "number"), [(name, 12) for name in FILES], ids=FILES)
def test_wrong_values_with_valid_checksums(name, number, run, trained_run, whole):
    values = VALUES if name in JSON else [*VALUES, *TENSORS]
    content = content_of(run, name)
    for seed in seeds(number):
        chance = random.Random(seed)
        (run / name).write_bytes(whole[name])
        wrong = mutated(content, chance, values)
        if name in JSON:
            wrong = json.loads(json.dumps(wrong))  # makes keys strings
        try:
            write(run, name, wrong)
        except (TypeError, AttributeError, UnicodeError):
            continue  # cannot be stored
        try:
            read_all(run, name, trained_run)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("name", FILES)
def test_wrong_bytes(name, run, trained_run, whole):
    for seed in seeds(4):
        chance = random.Random(seed)
        content = bytearray(whole[name])
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content) + 1)
            edit = chance.choice(("cut", "flip", "insert", "delete"))
            if edit == "cut":
                del content[at:]
            elif edit == "insert":
                content[at:at] = chance.randbytes(chance.randint(1, 64))
            elif edit == "delete":
                del content[at : at + chance.randint(1, 64)]
            elif at < len(content):
                content[at] ^= 1 << chance.randrange(8)
        (run / name).write_bytes(content)
        try:
            read_all(run, name, trained_run)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def read_statistics(folder: Path) -> Any:
    size = int(next(folder.glob("stats-*.json")).stem.split("-")[1])
    return statistics(folder, size)


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": lambda run: RunFolder(run).config(),
    "env.json": lambda run: schema.read_env(run / "env.json"),
    "metrics.jsonl": lambda run: RunFolder(run).entries(),
    BEST: lambda run: load_weights(run / BEST),
    PREDICTIONS: lambda run: {k: v.tolist() for k, v in read_predictions(run / PREDICTIONS).items()},
    LAST: lambda run: load_state(run / LAST),
}


def detected(read: Callable[[], Any], expected: Any, said: list[str]) -> bool:
    """Whether the damage was refused, reported, or changed nothing but added members."""
    said.clear()
    try:
        found = read()
    except UserError:
        return True
    if isinstance(found, dict):
        found = {name: found[name] for name in found if name in expected}
    return equal(found, expected) or bool(said)


@pytest.mark.parametrize("name", [*FILES, "stats"])
def test_a_flipped_bit_is_detected_or_harmless(name, run, folder, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(schema, "say", said.append)
    if name == "stats":
        place = shutil.copytree(folder, tmp_path / "data")
        path, read = next(place.glob("stats-*.json")), lambda: read_statistics(place)
    else:
        path, read = run / name, lambda: READERS[name](run)
    expected, content = read(), path.read_bytes()
    for seed in seeds(FLIPS):
        bit = random.Random(seed).randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert detected(read, expected, said), f"bit {bit}"


def test_zeros_in_place_of_any_file_are_refused(run, trained_run, whole):
    for name in FILES:
        (run / name).write_bytes(np.zeros(10_000, np.uint8).tobytes())
        assert read_all(run, name, trained_run)
        (run / name).write_bytes(whole[name])
