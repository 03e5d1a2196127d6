"""Training on a GPU that computes nothing: what it starts, copies and waits for. Values are tested elsewhere."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from emnist_dali.config import Optimizer
from emnist_dali.recipes import RECIPES, recipe
from emnist_dali.training.memory import fitting_batch_size, peak_bytes

from . import null_gpu

KERNELS = Path(__file__).with_name("kernels.json")
SMALL = {"model": "emnist_fast_small", "image_size": 28, "batch_size": 64}
# Each recipe with its own optimizer, and one of them with every other.
PAIRS = [
    (name, optimizer)
    for name in RECIPES
    for optimizer in get_args(Optimizer)
    if name == "fast" or optimizer == recipe(name).training.optimizer
]
CASES = {
    **{
        f"{name} {optimizer}": {"name": name, "settings": {"optimizer": optimizer, "compile": "off"}}
        for name, optimizer in PAIRS
    },
    **{
        f"{name} {optimizer} graph": {"name": name, "settings": {"optimizer": optimizer, "compile": "graph"}}
        for name, optimizer in PAIRS
        if name in ("fast", "gpu", "cpu")  # EfficientNet's recipes accumulate
    },
    "fast muon compiled": {"name": "fast", "settings": {"compile": "on"}},
    # Mixing and accumulation; EfficientNet takes minutes to compile: bench/rehearsal.py does.
    "published lion compiled": {"name": "published", "settings": {"compile": "on", **SMALL}},
}


@pytest.fixture(scope="session")
def folder(pytestconfig: pytest.Config) -> Path:
    """Where the stand-in is built; what was compiled for it is kept for the next time."""
    if lacking := null_gpu.missing():
        pytest.skip(lacking)
    return Path(pytestconfig.cache.mkdir("rehearsal"))


@pytest.fixture(scope="session")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every case, from one process: importing torch takes seconds."""
    out = folder / "results.json"
    null_gpu.run("tests.rehearsal.rehearse", json.dumps(list(CASES.values())), str(out), folder=folder)
    found = dict(zip(CASES, json.loads(out.read_text()), strict=True))
    if os.environ.get("UPDATE_KERNELS"):
        table = {"torch": _torch(), "a step": {name: _counts(of_case) for name, of_case in found.items()}}
        KERNELS.write_text(json.dumps(table, indent=1) + "\n")
    return found


def _counts(result: dict[str, Any]) -> dict[str, int]:
    """Kernels by phase of the step; with a graph, those in it and those beside it."""
    graph = {"in the graph": result["captured"], "beside it": result["kernels"]}
    return graph if result["captured"] else result["phases"]


def _torch() -> str:
    import torch

    return torch.__version__


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return results[request.param]


def test_a_step_neither_copies_nor_waits(case: dict[str, Any]) -> None:
    assert case["copies"] == case["waits"] == []


def test_everything_lies_on_the_gpu(case: dict[str, Any]) -> None:
    assert case["elsewhere"] == []


def test_images_stay_channels_last(case: dict[str, Any]) -> None:
    assert case["not_channels_last"] == []


def test_nothing_breaks_or_recompiles(case: dict[str, Any]) -> None:
    """Over two epochs with evaluation and checkpoint; training is one graph."""
    assert (case["breaks"], case["recompiled"]) == (0, 0)
    assert case["graphs"] == (1 if case["compile"] == "on" else 0)


@pytest.mark.parametrize("name", CASES)
def test_a_step_starts_no_more_kernels_than_before(name: str, results: dict[str, dict[str, Any]]) -> None:
    table = json.loads(KERNELS.read_text())
    if table["torch"] != _torch():
        pytest.skip(f"{KERNELS.name} is of torch {table['torch']}, this is {_torch()}")
    before = table["a step"][name]
    more = {
        phase: (n, before.get(phase, 0)) for phase, n in _counts(results[name]).items() if n > before.get(phase, 0)
    }
    now = {phase: results[name]["names"].get(phase) for phase in more}
    advice = "If they are worth it: UPDATE_KERNELS=1 python -m pytest tests/rehearsal"
    assert not more, f"kernels now and before: {more}. {advice}. They are now {json.dumps(now, indent=1)}"


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("graph")])
def test_a_captured_step_is_one_launch(name: str, results: dict[str, dict[str, Any]]) -> None:
    """Beside it are the two copies into its buffers, the targets, the learning rate and the averages."""
    assert results[name]["captured"] > results[name]["kernels"] <= 12


def test_memory_is_as_computed(case: dict[str, Any]) -> None:
    config = recipe(case["recipe"], case["split"]).override(
        {name: case[name] for name in ("model", "image_size", "batch_size", "optimizer")}
    )
    computed = peak_bytes(config)
    # Compiled steps hold less; what an update takes in passing is tens of MB for the small nets.
    assert case["peak"] <= 1.1 * computed + 2**25
    if case["compile"] == "off":
        assert case["peak"] >= 0.9 * computed - 2**25


@pytest.mark.parametrize("split", ["balanced", "byclass"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_a_small_gpu(name: str, split: str) -> None:
    config = recipe(name, split)
    assert fitting_batch_size(config, 16 * 2**30) == config.data.batch_size


@pytest.mark.parametrize(("backend", "compile"), [("cpu", "off"), ("resident", "graph")])
def test_a_whole_training_runs(backend: str, compile: str, folder: Path, data_dir: Path, tmp_path: Path) -> None:
    """With validation, checkpoints, test and report, as from the command line."""
    run = tmp_path / "run"
    options = {"recipe": "fast", "split": "small", "source": "glyphs", "data-dir": data_dir, "out": run}
    options |= {"device": "cuda:0", "backend": backend, "compile": compile, "epochs": 2}
    options["batch-size"] = 36  # of 108 test images: padding would be counted, because its labels are not computed
    arguments = [f"--{name}={value}" for name, value in options.items()]
    null_gpu.run("emnist_dali", "train", *arguments, folder=folder, variables=null_gpu.for_programs)
    kinds = [json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("epoch") == 2
    assert "test" in kinds
    assert (run / "report.html").exists()
    # Its checkpoint is read, and found to be that of a complete run.
    null_gpu.run("emnist_dali", "train", "--resume", str(run), folder=folder, variables=null_gpu.for_programs)


def test_a_resident_batch_is_one_kernel(folder: Path, data_dir: Path, tmp_path: Path) -> None:
    """Plans go to the device by three copies from pinned memory, which nobody waits for."""
    out = tmp_path / "batches.json"
    null_gpu.run("tests.rehearsal.batches", str(data_dir / "demo" / "small"), str(out), folder=folder)
    batches = json.loads(out.read_text())
    assert len(batches) == 600 // 64
    assert {batch["KERNEL"] for batch in batches} == {1}
    assert not any("WAIT" in batch or "TO_HOST" in batch for batch in batches)
    assert all(batch.get("TO_DEVICE", 0) in (0, 3) for batch in batches)


def test_the_stand_in_sees_what_is_forbidden(folder: Path) -> None:
    out = folder / "forbidden.json"
    null_gpu.run("tests.rehearsal.forbidden", str(out), folder=folder)
    assert json.loads(out.read_text()) == {
        "item": ["TO_HOST", "WAIT"],
        "cpu": ["TO_HOST", "WAIT"],
        "cuda": ["TO_DEVICE", "WAIT"],
        "synchronize": ["WAIT"],
        "synchronize in a capture": "AcceleratorError",
        "item in a capture": "AcceleratorError",
    }
