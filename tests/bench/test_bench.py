"""The benchmarks measure what they say and write what they measured; no test here checks a speed."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ablation
import ddp_scaling
import gpu_check
import growth
import larger_than_memory
import limits
import pipeline_settings
import plot
import reproduce
import result_file
import stage_timers
import throughput
import time_to_accuracy
import timing
from emnist_dali import recipes
from emnist_dali.config import from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.runtime import resolve
from emnist_dali.training import trainer
from peers import Peer

from ..training_runs import TINY, at_step, signalled

SECONDS = 0.01
BENCH = Path(throughput.__file__).parent
RECORDS = [path for path in sorted((BENCH / "records").glob("*.json")) if "benchmark" in json.loads(path.read_text())]


@pytest.fixture
def setup(folder) -> stage_timers.Setup:
    options = {"batch_size": 64, "device": "cpu", "split": "small"}
    config = resolve(recipes.cpu("small").override({**TINY, **options}))
    shards, stats = Shards(folder, "train"), Stats(0.17, 0.33)
    return stage_timers.Setup(config=config, shards=shards, stats=stats, batch_size=64, threads=2, seconds=SECONDS)


def test_measurements_are_interleaved():
    calls = []
    rates = timing.measure_interleaved({name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 3
    assert rates["a"].values == (1, 3, 5)
    assert rates["b"].median == 4
    assert rates["b"].to_dict() == {"images_per_second": 4, "low": 2, "high": 6, "values": [2, 4, 6]}


def test_a_rate_is_units_over_the_time_that_they_took(monkeypatch):
    clock = iter(range(1000))  # each reading of the clock takes a second
    monkeypatch.setattr(timing, "perf_counter", lambda: next(clock))
    assert timing.rate(lambda: 10, 8) == pytest.approx(10 * 8 / 9)


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution():
    # From tables for 95 %: the 4th and 12th of 15, the 2nd and 9th of 10; 5 values are too few.
    assert timing.median_interval(tuple(range(1, 16))) == (4, 12)
    assert timing.median_interval(tuple(range(10, 0, -1))) == (2, 9)
    assert timing.median_interval((3, 1, 2, 5, 4, 6)) == (1, 6)
    assert timing.median_interval((3, 1, 2, 5, 4)) == (1, 5)
    assert timing.median_interval((7,)) == (7, 7)


def test_the_interval_contains_the_median_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(size=(2000, 15))
    intervals = [timing.median_interval(tuple(row)) for row in samples]
    coverage = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.95 <= coverage < 0.985


def test_a_limit_is_the_lower_of_bytes_and_arithmetic():
    machine = limits.Machine(bandwidth=1e9, arithmetic=1e12, dtype="float32")
    assert limits.Cost(bytes=1e3).limit(machine) == (1e6, "bytes")
    assert limits.Cost(bytes=1e3, operations=1e7).limit(machine) == (1e5, "arithmetic")


def test_training_costs_what_its_layers_cost(setup):
    timer = stage_timers.TrainingTimer(replace(setup, config=setup.config.override({"model": "test_vit"})))
    trainer = timer.trainer
    timer.close()
    cost = limits.training_cost(trainer)
    weights = sum(p.numel() for p in trainer.model.parameters())
    # AdamW keeps 2 numbers per weight, and the averaged weights are a third.
    assert cost.bytes == 2 * 4 * weights * 5 / 64 + 4 * 32 * 32
    # Two operations per weight and product; one product forward and two backward, at each of the patches.
    patches = (32 // 16) ** 2 + 1
    matrices = sum(m.weight.numel() for m in trainer.model.modules() if isinstance(m, torch.nn.Linear))
    assert cost.operations > 0.9 * 6 * matrices * patches


def test_model_and_train_are_epochs_of_one_trainer_that_differ_in_their_data_only(setup):
    timer = stage_timers.TrainingTimer(setup)
    steps, epochs = timer.trainer.steps_per_epoch, []
    assert steps >= 3
    epochs.append(timer.trainer.step)
    timer.model()
    epochs.append(timer.trainer.step)
    timer.train()
    epochs.append(timer.trainer.step)
    timer.close()
    assert np.diff(epochs).tolist() == [steps, steps]
    assert len(timer.waits) == 1
    resident, real = timer._resident, timer._loader
    assert (resident.batches, resident.pixels, len(resident)) == (real.batches, real.pixels, len(real))


def test_every_stage_is_in_the_document(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "PAIRS", 6)
    stages = [stage for stage in throughput.STAGES if stage != "peers"]
    document = {**throughput.describe(setup), **throughput.measure(setup, stages)}
    assert [*document["stages"]] == stages
    for stage in document["stages"].values():
        assert len(stage["values"]) in (timing.REPETITIONS, 6)
        assert stage["low"] <= stage["images_per_second"] <= stage["high"]
        assert stage["share"] == pytest.approx(stage["images_per_second"] / stage["limit"])
    ratios = document["ratios"]
    assert len(ratios["pairs"]) == 6
    assert ratios["bound_share_95"][0] <= ratios["bound_share"] <= ratios["bound_share_95"][1]
    assert 0 <= ratios["data_wait"] <= 1
    json.dumps(document)
    table = throughput.table(document)
    assert all(f"\n{name} " in table for name in stages)
    plot.draw(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_ends_with_its_document(data_dir, tmp_path):
    stages = "--stage read --stage mix --seconds 0.01"
    files = f"--split small --source glyphs --data-dir {data_dir} --json {tmp_path / 't.json'}"
    arguments = f"{stages} {files} --device cpu --threads 1 --batch-size 64"
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(throughput.main, arguments, catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0
    document = json.loads(result.stdout.splitlines()[-1])
    assert document == json.loads((tmp_path / "t.json").read_text())
    assert document["stages"].keys() == {"read", "mix"}
    assert document["machine"]["packages"]["torch"]
    assert document["config"]["model"]["model"] == "emnist_fast_wide"
    assert document["config"]["data"]["image_size"] == 28


def test_a_result_file_is_replaced_only_by_one_of_the_same_benchmark(tmp_path):
    path = tmp_path / "result.json"
    result_file.check_result_file(None, "growth")
    result_file.check_result_file(path, "growth")
    for old_name in ("scale", "growth"):  # the first is the name in older files
        path.write_text(json.dumps({"benchmark": old_name}))
        result_file.write_result_file(path, {"benchmark": "growth", "machine": None})
        assert json.loads(path.read_text()) == {"benchmark": "growth", "machine": None}
    for foreign in ({"benchmark": "throughput"}, {"machine": None}, []):
        path.write_text(json.dumps(foreign))
        with pytest.raises(UserError, match="not a result file of growth"):
            result_file.write_result_file(path, {"benchmark": "growth"})
        assert json.loads(path.read_text()) == foreign


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_result_files_belong_to_a_benchmark(path):
    name = json.loads(path.read_text())["benchmark"]
    result_file.check_result_file(path, result_file._RENAMED.get(name, name))
    with pytest.raises(UserError):
        result_file.check_result_file(path, "another benchmark")


def test_growth_measures_each_size_batch_and_thread_count(setup, data_dir, monkeypatch):
    monkeypatch.setattr(growth, "RECORDS", (100, 1100))
    monkeypatch.setattr(growth, "BATCH_SIZES", (64, 128))
    monkeypatch.setattr(growth.packing, "SHARD_SAMPLES", 500)
    before = sorted(data_dir.rglob("*"))
    document = growth.measure(setup)
    assert [row["records"] for row in document["by_records"]] == [100, 1100]
    assert all(row["open_seconds"] < row["first_batch_seconds"] for row in document["by_records"])
    assert [row["batch_size"] for row in document["by_batch"]] == [64, 128]
    assert [row["threads"] for row in document["by_threads"]] == [1, 2]
    assert "1,100" in growth.table(document)
    assert sorted(data_dir.rglob("*")) == before


def test_a_larger_data_set_repeats_the_real_records(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(growth.packing, "SHARD_SAMPLES", 700)
    growth.repeat_records(setup.shards, tmp_path / "repeated", 1500)
    repeated = Shards(tmp_path / "repeated", "train")
    assert len(repeated) == 1500
    originals = np.arange(600)
    for start in (0, 700):
        np.testing.assert_array_equal(repeated.images(originals + start), setup.shards.images(originals))
    np.testing.assert_array_equal(repeated.labels(np.arange(1400, 1500)), setup.shards.labels(np.arange(100)))


def test_data_larger_than_memory_is_measured_in_turns(setup, monkeypatch):
    """In this process instead of one each, and unbounded: control groups need root."""
    monkeypatch.setattr(larger_than_memory, "BATCH_SIZE", 64)
    monkeypatch.setattr(larger_than_memory, "GROUPS", Path("/no/control/groups"))
    peer = Peer("mosaicml_streaming", environment="none")
    monkeypatch.setattr(larger_than_memory, "LARGE_PEERS", {"a peer": peer})
    seen = []

    def measured(settings):
        seen.append(settings["name"])
        return larger_than_memory._measure(settings)

    monkeypatch.setattr(larger_than_memory, "_in_a_process", measured)
    document = larger_than_memory.measure(setup.shards, 1500, 300, 500, seconds=0.02, repeats=2)
    assert not list(setup.shards.folder.parent.glob("emnist-dali-large-*"))
    kinds = [larger_than_memory.DISK, larger_than_memory.DIRECT, *larger_than_memory.KINDS]
    assert seen == [*kinds, *kinds, *2 * ["batches from memory"]] * 2
    *ours, theirs = document["systems"].values()
    for system in ours:
        assert (system["records"], system["bounded"]) == (1500, False)
        assert all(min(values) > 0 and len(values) == 2 for values in system["images_per_second"].values())
    assert theirs == {"missing": "It is not installed; run «bash bench/peers.sh none»."}
    text = larger_than_memory.table(document)
    assert all(f"emnist-dali, {codec}: {name} |" in text for name in kinds for codec in ("lz4", "raw"))
    assert "| a peer | | | | It is not installed" in text


@pytest.mark.parametrize("group", ["block", "queue", "ahead", "threads", "gathering", "codec", "warp"])
def test_each_group_of_settings_runs_and_marks_its_default(group, setup):
    measures = pipeline_settings.GROUPS[group](setup)
    assert sum(name.endswith("*") for name in measures) == 1
    assert all(measure() > 0 for measure in measures.values())


def test_a_value_that_fails_leaves_the_others(setup, monkeypatch, tmp_path):
    def broken() -> float:
        calls.append(1)
        raise RuntimeError("CUDA error: no")

    def not_begun(_: stage_timers.Setup) -> dict[str, pipeline_settings.Measure]:
        raise UserError("The data.backend is missing.")

    calls = []
    groups = {
        "a": lambda _: {"good": lambda: 1.0, "bad": broken},
        "b": not_begun,
        "c": lambda _: {"fine": lambda: 2.0},
    }
    for name, group in groups.items():
        group.__doc__ = name
    monkeypatch.setattr(pipeline_settings, "GROUPS", groups)
    monkeypatch.setattr(pipeline_settings, "load", lambda *_: setup)
    result = CliRunner().invoke(pipeline_settings.main, ["--json", str(tmp_path / "r.json")])
    assert (result.exit_code, len(calls)) == (1, 1)
    document = json.loads((tmp_path / "r.json").read_text())
    assert document == json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert {name: [*group] for name, group in document["groups"].items()} == {"a": ["good"], "c": ["fine"]}
    assert document["failures"] == {
        "a": {"bad": "RuntimeError: CUDA error: no"},
        "b": {"all": "UserError: The --backend is missing."},
    }


def test_the_step_groups_variants_are_of_one_step_a_batch(setup, monkeypatch):
    class Timer:
        def __init__(self, setup: stage_timers.Setup) -> None:
            made.append((setup.config.run.compile, setup.config.training.accumulation))
            if setup.config.run.compile == "graph":
                raise RuntimeError("out of memory")

        def model(self) -> float:
            return 1.0

        def close(self) -> None:
            pass

    made = []
    monkeypatch.setattr(pipeline_settings, "TrainingTimer", Timer)
    config = setup.config.override({"device": "cuda", "compile": "on", "accumulation": 4})
    gpu = replace(setup, config=config)
    rates, failures = pipeline_settings.measure(pipeline_settings.step, gpu)
    assert [*rates] == ["eager", "compiled *"]
    assert failures == {"CUDA graph": "RuntimeError: out of memory"}
    assert made == [("off", 1), ("on", 1), ("graph", 1)]  # each is made once, and one that fails is not tried again


def test_resize_and_warp_are_two_passes_in_one_graph_only(setup):
    affine, one_pass = setup.config.data.affine, pipeline_settings.dali.preprocess
    images = {}
    for name, backend in (("one", "dali"), ("two", pipeline_settings._two_passes)):
        with setup.loader(backend=backend, affine=affine) as loader:
            images[name] = next(iter(loader)).images.clone()
    assert images["one"].shape == images["two"].shape
    assert not torch.equal(images["one"], images["two"])
    assert pipeline_settings.dali.preprocess is one_pass


def test_time_to_accuracy_trains_on_everything_and_tests_once_a_run(data_dir, monkeypatch):
    options = {"source": "glyphs", "data_dir": str(data_dir), "device": "cpu", "epochs": 2, "batch_size": 64}
    config = resolve(recipes.fast_cpu("small").override({**options, "val_fraction": 0.0}))
    trained_on, evaluated = [], []
    real_build, real_predict = time_to_accuracy.build_training, time_to_accuracy.predict

    def build_training(*arguments, **options):
        training = real_build(*arguments, **options)
        trained_on.append(training.loader.plan.samples)
        assert training.validation is None
        return training

    def predict(model, loader, *arguments):
        evaluated.append((loader.shards.part, loader.plan.samples))
        return real_predict(model, loader, *arguments)

    monkeypatch.setattr(time_to_accuracy, "build_training", build_training)
    monkeypatch.setattr(time_to_accuracy, "predict", predict)
    document = time_to_accuracy.measure(config, target=0.2, runs=2)
    assert trained_on == [600, 600]
    assert evaluated == [("test", 108), ("test", 108)]
    assert [run["seed"] for run in document["runs"]] == [0, 1]
    one, other = (run["accuracy"] for run in document["runs"])
    assert document["accuracy"]["mean"] == pytest.approx((one + other) / 2)
    assert document["accuracy"]["sd"] == pytest.approx(abs(one - other) / 2**0.5)
    assert document["reached"] == (document["accuracy"]["mean"] >= 0.2)
    assert min(run["seconds"] for run in document["runs"]) > 0


@pytest.fixture(scope="module")
def ablated(data_dir, tmp_path_factory):
    """Two variants with two seeds: configs, run folders, document."""
    data = {"data_dir": str(data_dir), "source": "glyphs", "batch_size": 64, "val_fraction": 0.2}
    base = ablation.baseline("small", 1).override({**data, "device": "cpu"})
    out = tmp_path_factory.mktemp("ablation")
    configs = {name: ablation.VARIANTS[name](base) for name in ABLATED}
    return configs, out, ablation.measure(configs, 2, out)


ABLATED = (ablation.BASELINE, "no averaged weights")


def test_an_ablation_compares_variants_at_equal_seeds(ablated):
    _, out, document = ablated
    assert tuple(document["variants"]) == tuple(document["runs"]) == ABLATED
    base, other = (document["runs"][name] for name in ABLATED)
    for runs in (base, other):
        assert [run["seed"] for run in runs] == [0, 1]
        assert [run["steps"] for run in runs] == [480 // 64] * 2
        assert min(run["seconds"] for run in runs) > 0
    for metric in ablation.METRICS:
        row = document["variants"][ABLATED[1]][metric]
        first, second = (run[metric] - reference[metric] for run, reference in zip(other, base, strict=True))
        assert row["mean"] == pytest.approx(sum(run[metric] for run in other) / 2)
        assert row["sd"] == pytest.approx(abs(other[0][metric] - other[1][metric]) / 2**0.5)
        assert row["difference"] == pytest.approx((first + second) / 2)
        assert row["half_interval"] == pytest.approx(12.7062 * abs(first - second) / 2, rel=1e-4)
        assert "difference" not in document["variants"][ablation.BASELINE][metric]
    names = {run["run"] for runs in document["runs"].values() for run in runs}
    assert names == {"baseline-0", "baseline-1", "no-averaged-weights-0", "no-averaged-weights-1"}
    assert names == {path.name for path in out.iterdir()}
    assert json.loads(json.dumps(document))["runs"] == document["runs"]


def test_complete_runs_are_not_trained_again(ablated, monkeypatch):
    configs, out, document = ablated

    def train_epoch(*_) -> dict:
        raise AssertionError

    monkeypatch.setattr(trainer.Trainer, "train_epoch", train_epoch)
    assert ablation.measure(configs, 2, out)["runs"] == document["runs"]
    alone = ablation.measure({ABLATED[1]: configs[ABLATED[1]]}, 1, out)
    assert alone["runs"][ABLATED[1]] == document["runs"][ABLATED[1]][:1]
    assert alone["variants"][ABLATED[1]]["accuracy"].keys() == {"mean", "sd"}  # without a baseline


def test_an_interrupted_run_of_an_ablation_is_resumed(ablated, tmp_path, monkeypatch):
    configs, _, document = ablated
    name, method, when = ABLATED[0], *at_step(3)
    with monkeypatch.context() as patch:
        signalled(patch, method, when)
        with pytest.raises(SystemExit):
            ablation.measure({name: configs[name]}, 1, tmp_path)
    (resumed,) = ablation.measure({name: configs[name]}, 1, tmp_path)["runs"][name]
    assert {**resumed, "seconds": None} == {**document["runs"][name][0], "seconds": None}


def test_an_ablation_continues_its_result_file_without_the_run_folders(ablated, tmp_path, monkeypatch):
    configs, _, document = ablated
    path = tmp_path / "result.json"
    first = {ABLATED[0]: configs[ABLATED[0]]}
    ran = []

    def run(config, folder):
        ran.append(folder.name)
        return document["runs"][ABLATED[folder.name.startswith("no")]][config.training.seed]

    monkeypatch.setattr(ablation, "run", run)
    ablation.measure(first, 1, tmp_path, path)
    assert ablation.measure(configs, 2, tmp_path, path)["runs"] == document["runs"]
    assert ran == ["baseline-0", "no-averaged-weights-0", "baseline-1", "no-averaged-weights-1"]
    assert json.loads(path.read_text())["variants"] == document["variants"]
    elsewhere = {name: config.override({"out": "other", "seed": 7}) for name, config in configs.items()}
    ablation.measure(elsewhere, 2, tmp_path, path)
    assert len(ran) == 4
    longer = {name: config.override({"epochs": 2}) for name, config in configs.items()}
    before = path.read_bytes()
    with pytest.raises(UserError, match="with other settings"):
        ablation.measure(longer, 1, tmp_path, path)
    assert path.read_bytes() == before
    third = {"no warps": configs[ABLATED[0]].override({"data.affine": None})}
    more = ablation.measure(third, 1, tmp_path, path)
    assert ran[4:] == ["no-warps-0"]
    assert {name: more["runs"][name] for name in ABLATED} == document["runs"]
    assert more["configs"].keys() == more["variants"].keys() == {*ABLATED, "no warps"}
    path.write_text(json.dumps({**document, "fingerprint": "of other data"}))
    with pytest.raises(UserError, match="of other data"):
        ablation.measure(configs, 1, tmp_path, path)
    path.write_text(json.dumps({**document, "benchmark": "throughput"}))
    with pytest.raises(UserError, match="not a result file of ablation"):
        ablation.measure(configs, 1, tmp_path, path)


def test_runs_in_an_older_result_file_are_read():
    path = BENCH / "records" / "byclass-cpu-2-cores.json"  # with old names of metrics
    content = json.loads(path.read_text())
    configs = {name: from_dict(config) for name, config in content["configs"].items()}
    found = ablation._found(path, content["fingerprint"], configs)
    for name, runs in content["runs"].items():
        for old, run in zip(runs, found["runs"][name], strict=True):
            assert run["balanced_accuracy"] == old["class_mean"]
            assert run["val_balanced_accuracy"] == old["val_class_mean"]
            assert ablation.summary([run], [run])["accuracy"]["mean"] == old["accuracy"]


def test_runs_with_removed_settings_are_not_added_to():
    path = BENCH / "records" / "ablation-cpu-2-cores.json"  # one of its 9 variants erases
    content = json.loads(path.read_text())
    (erased,) = (name for name in content["configs"] if "eras" in name)
    config = from_dict(content["configs"]["baseline"])
    assert len(ablation._found(path, content["fingerprint"], {"baseline": config})["runs"]) == 9
    with pytest.raises(UserError, match="other settings"):
        ablation._found(path, content["fingerprint"], {erased: config})


def test_variants_of_a_recipe_are_named_after_both():
    assert ablation._name("cpu", ablation.BASELINE) == "cpu"
    assert ablation._name("cpu", "class weights") == "cpu, class weights"
    assert ablation._name("", ablation.BASELINE) == ablation.BASELINE


def test_the_table_of_an_ablation_has_a_row_a_variant(ablated):
    _, _, document = ablated
    header, rule, *rows = ablation.table(document).splitlines()
    assert header.count("|") == rule.count("|") == 7
    assert [row.split("|")[1].strip() for row in rows] == list(ABLATED)
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [len(row) for row in cells] == [6, 6]
    assert (cells[0][2], cells[0][4]) == ("", "")
    accuracy = document["variants"][ABLATED[1]]["accuracy"]
    assert cells[1][3] == f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['sd']:.2f}"
    assert cells[1][4] == f"{100 * accuracy['difference']:+.2f} ± {100 * accuracy['half_interval']:.2f}"


def test_every_variant_of_the_ablation_differs_from_the_baseline_and_has_its_own_folder():
    base = ablation.baseline("balanced", 5)
    configs = {name: build(base) for name, build in ablation.VARIANTS.items()}
    assert configs.pop(ablation.BASELINE) == configs.pop("logit adjustment") == base
    assert ablation.VARIANTS["logit adjustment"](ablation.baseline("byclass", 5)) != ablation.baseline("byclass", 5)
    for name, config in configs.items():
        assert config != base, name
        assert config.training.epochs == 5, name
        assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert (config.model, config.data.batch_size, config.training.accumulation) == (
            base.model, base.data.batch_size, 1,
        )  # fmt: skip
        assert ablation.VARIANTS[name](base.override({"seed": 3})) == config.override({"seed": 3}), name
    assert len({json.dumps(config.to_dict()) for config in configs.values()}) == len(configs)
    assert len({ablation._slug(name) for name in ablation.VARIANTS}) == len(ablation.VARIANTS)


def test_the_interval_of_a_mean_is_students():
    # 1, 2, 3, 4, 5: standard deviation √2.5, t = 2.7764 with 4 degrees of freedom.
    assert ablation.half_interval([1, 2, 3, 4, 5]) == pytest.approx(2.7764 * (2.5 / 5) ** 0.5, rel=1e-4)
    assert ablation.half_interval([0.1, 0.1, 0.1]) == pytest.approx(0)
    assert ablation.half_interval([1]) is None


def test_one_seed_has_no_spread():
    run = {"seconds": 3.0, **dict.fromkeys(ablation.METRICS, 0.5)}
    other = {"seconds": 4.0, **dict.fromkeys(ablation.METRICS, 0.25)}
    row = ablation.summary([other], [run])
    assert row["accuracy"] == {"mean": 0.25, "sd": None, "difference": -0.25, "half_interval": None}
    assert "| alone | 25.00 | -25.00 | 25.00 | -25.00 | 4 |" in ablation.table({"variants": {"alone": row}})


def test_an_ablation_without_data_is_one_sentence(tmp_path):
    arguments = ["--split", "nonsense", "--data-dir", str(tmp_path), "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(ablation.main, arguments)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "no split 'nonsense'" in result.output


def test_gpu_check_reports_failures_and_documents():
    good = gpu_check.run("good", [sys.executable, "-c", "print('a'); print('{\"benchmark\": \"x\"}')"])
    assert (good["exit_code"], good["output"], good["document"]) == (0, "a", {"benchmark": "x"})
    failed = gpu_check.run("bad", [sys.executable, "-c", "print('b'); raise SystemExit(3)"])
    assert (failed["exit_code"], failed["output"], failed["document"]) == (3, "b", None)
    late = "print('{\"benchmark\": \"x\"}'); raise SystemExit('Error: a value failed')"
    partly = gpu_check.run("partly", [sys.executable, "-c", late])
    assert (partly["exit_code"], partly["output"], partly["document"]) == (
        1,
        "Error: a value failed",
        {"benchmark": "x"},
    )
    machine = {
        "gpu": "GPU",
        "gpu_driver": "570",
        "gpu_power_limit_watts": 700.0,
        **dict.fromkeys(("gpu_sm_mhz", "gpu_sm_max_mhz", "gpu_memory_mhz", "gpu_memory_max_mhz")),
        "cpu": "CPU",
        "cpus": 2,
        "time": "2026-01-01T",
        "python": "3",
        "packages": {},
        "command": "c",
    }
    text = gpu_check.markdown({"machine": machine, "parts": {"good": good, "bad": failed}})
    assert "## good (" in text
    assert "failed with exit code 3" in text
    assert "Driver 570, power limit 700 W; clocks before the first part: SM ? of ? MHz" in text


def test_half_a_document_is_output():
    part = gpu_check.run("half", [sys.executable, "-c", "print('{\"benchmark\": \"x'); print('b')"])
    assert (part["exit_code"], part["output"], part["document"]) == (0, '{"benchmark": "x\nb', None)


def test_a_stuck_part_ends_with_all_its_processes():
    body = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    stuck = gpu_check.run("stuck", [sys.executable, "-c", body], limit=1)
    assert (stuck["exit_code"], stuck["output"]) == (gpu_check.TIMED_OUT, "begun")
    assert stuck["seconds"] < 30


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_check_that_is_cut_off_leaves_what_it_measured(tmp_path, monkeypatch, signal_number):
    path, gate = tmp_path / "check-x.json", tmp_path / "gate"
    os.mkfifo(gate)  # the second part waits for someone to open it
    commands = {
        "first": [sys.executable, "-c", 'print(\'{"benchmark": "x"}\')'],
        "broken": [sys.executable, "-c", "raise SystemExit(3)"],
        "second": [sys.executable, "-c", f"print('half', flush=True); open({str(gate)!r})"],
        "third": [],
    }
    monkeypatch.setattr(gpu_check, "SAVE_EVERY", 0.01)

    def check() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        gpu_check.raise_on_signals()
        gpu_check.check(commands, path, environment())

    process = multiprocessing.get_context("fork").Process(target=check)
    process.start()
    while not path.exists() or json.loads(path.read_text())["parts"].get("second", {}).get("output") != "half":
        process.join(0.05)
        assert process.exitcode is None
    os.kill(process.pid, signal_number)
    process.join()
    with suppress(OSError):  # no reader: the part has ended
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    parts = json.loads(path.read_text())["parts"]
    assert parts.keys() == commands.keys()
    assert parts["third"]["exit_code"] is None  # so that it does not look complete
    assert parts["broken"]["exit_code"] == 3
    assert (parts["first"]["exit_code"], parts["first"]["document"]) == (0, {"benchmark": "x"})
    assert parts["second"]["output"] == "half"
    assert parts["second"]["exit_code"] == (None if signal_number == signal.SIGKILL else gpu_check.INTERRUPTED)
    assert "## second (" in path.with_suffix(".md").read_text()
    assert "## third (0 s, not begun)" in path.with_suffix(".md").read_text()


def test_a_second_check_keeps_what_succeeded_and_loses_nothing(tmp_path):
    path, machine = tmp_path / "check-x.json", environment()
    write = f"open({str(tmp_path / 'count')!r}, 'a').write"
    commands = {
        "good": [sys.executable, "-c", f"{write}('g')", f"/tmp/{gpu_check.SCRATCH}one/run"],
        "bad": [sys.executable, "-c", f"{write}('b'); print('why'); raise SystemExit(3)"],
    }
    gpu_check.check(commands, path, machine)
    commands["good"][-1] = f"/tmp/{gpu_check.SCRATCH}other/run"  # a scratch folder has another name each time
    gpu_check.check(commands, path, machine)
    assert (tmp_path / "count").read_text() == "gbb"
    parts = json.loads(path.read_text())["parts"]
    assert parts["good"]["exit_code"] == 0
    assert parts["bad"]["earlier"]["output"] == "why"
    before = path.read_bytes()
    with pytest.raises(UserError, match="other settings or package versions; choose another --out"):
        gpu_check.check({**commands, "good": [*commands["good"], "--seconds", "2"]}, path, machine)
    with pytest.raises(UserError, match="other settings or package versions"):
        gpu_check.check(commands, path, {**machine, "packages": {}})
    assert path.read_bytes() == before


def test_a_second_signal_still_ends_the_part(monkeypatch):
    def interrupted(timeout: float) -> int:
        raise KeyboardInterrupt

    body = "trap '' TERM; echo begun; sleep 20 & wait"
    process = subprocess.Popen(["sh", "-c", body], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "begun\n"
    monkeypatch.setattr(process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu_check._end(process)
    assert subprocess.Popen.wait(process, 10) == -signal.SIGKILL
    process.stdout.close()


def test_parity_comes_first_and_stuck_leaves_time(tmp_path, monkeypatch):
    parts = gpu_check.parts([], "cuda", tmp_path)
    assert [*parts][:7] == ["parity", "pipeline", "pipeline, dali", "backends", "fast", "training step", "tests"]
    source = (gpu_check.ROOT / "tests" / "gpu" / "test_gpu.py").read_text()
    chosen = [name for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)
              if any(word in name for word in gpu_check.PARITY.split(" or "))]  # fmt: skip
    assert chosen == [
        "test_decode_and_equalize_are_exact", "test_decode_and_equalize_are_exact_on_real_images",
        "test_images_agree_within_a_grey_level", "test_half_images_are_the_rounded_float_images",
        "test_the_last_evaluation_batch_is_padded", "test_cpu_batches_reach_the_gpu_whole",
        "test_batches_of_resident_images_are_the_cpus",
    ]  # fmt: skip
    assert all(word in " ".join(chosen) for word in gpu_check.PARITY.split(" or "))
    limits = []
    monkeypatch.setattr(gpu_check, "run", lambda name, command, limit, save: limits.append(limit))
    gpu_check.check({"parity": [], "tests": []}, tmp_path / "check.json", environment())
    assert limits == [300, gpu_check.LIMIT]


def test_gpu_check_runs_the_parts_that_are_named(tmp_path):
    commands = {name: [sys.executable, "-c", ""] for name in ("first", "second", "third")}
    for name in ("second", "first"):
        gpu_check.check(commands, tmp_path / "check.json", environment(), (name,))
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert {name: part["exit_code"] for name, part in parts.items()} == {"first": 0, "second": 0, "third": None}


def test_gpu_check_names_commands_that_exist(tmp_path):
    for device in ("cpu", "cuda"):
        data = ["--data-dir", "data"]
        for command in gpu_check.parts(data, device, tmp_path).values():
            files = [word for word in command if word.endswith(".py")]
            assert all(Path(file).is_file() for file in files)
            assert all(word.startswith(("-", "/")) or "/" not in word for word in command)


def test_a_check_is_named_after_its_device(tmp_path):
    machine = {"gpu": "NVIDIA H100", "cpu": "AMD EPYC"}
    assert gpu_check.file_prefix(machine, "cuda:1") == "check-nvidia-h100-"
    assert gpu_check.file_prefix(machine, "cpu") == "check-amd-epyc-"


@pytest.mark.parametrize(
    ("script", "device"), [(gpu_check, "cuda"), (reproduce, "cuda:1"), (pipeline_settings, "cuda:1")]
)
def test_a_record_describes_the_device_that_was_named(script, device, monkeypatch, tmp_path):
    def describe(device: str | None = None) -> None:
        described.append(device)
        raise UserError("enough")

    described = []
    monkeypatch.setattr(script, "environment", describe)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "raise_on_signals", lambda: None)
    CliRunner().invoke(script.main, ["--device", device, "--data-dir", str(tmp_path)])
    assert described == [device]


def test_without_a_gpu_gpu_check_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(gpu_check.main, [])
    assert result.exit_code == 1
    assert "rehearse on the CPU with --device cpu" in result.output


SCRIPTS = (ablation, ddp_scaling, gpu_check, pipeline_settings, reproduce, throughput, time_to_accuracy)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_script_has_help(script):
    result = CliRunner().invoke(script.main, ["--help"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "--data-dir" in result.output
