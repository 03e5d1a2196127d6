"""The benchmark tells what it measured, and measures what it says; no test here looks at a speed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ablation
import gpu_check
import growth
import limits
import peers
import pipeline_settings
import plot
import stage_timers
import throughput
import time_to_accuracy
import timing
from emnist_dali import recipes
from emnist_dali.config import from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.runtime import resolve
from emnist_dali.training import trainer

from ..training_runs import TINY

SECONDS = 0.01


@pytest.fixture
def setup(folder) -> stage_timers.Setup:
    options = {"batch_size": 64, "device": "cpu", "split": "small"}
    config = resolve(recipes.cpu("small").override({**TINY, **options}))
    shards, stats = Shards(folder, "train"), Stats(0.17, 0.33)
    return stage_timers.Setup(config=config, shards=shards, stats=stats, batch_size=64, threads=2, seconds=SECONDS)


def test_contestants_take_turns():
    turns = []
    rates = timing.measure_interleaved({name: lambda name=name: turns.append(name) or len(turns) for name in "ab"}, 3)
    assert turns == ["a", "b"] * 3
    assert rates["a"].values == (1, 3, 5)
    assert rates["b"].median == 4
    assert rates["b"].to_dict() == {"images_per_second": 4, "low": 2, "high": 6, "values": [2, 4, 6]}


def test_a_rate_is_images_over_the_time_that_they_took(monkeypatch):
    clock = iter(range(1000))  # every look at the clock takes a second
    monkeypatch.setattr(timing, "perf_counter", lambda: next(clock))
    assert timing.rate(lambda: 10, 8) == pytest.approx(10 * 8 / 9)


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution():
    # Tables for 95 %: the 4th and 12th of 15, the 2nd and 9th of 10; 5 values are too few.
    assert timing.median_interval(tuple(range(1, 16))) == (4, 12)
    assert timing.median_interval(tuple(range(10, 0, -1))) == (2, 9)
    assert timing.median_interval((3, 1, 2, 5, 4)) == (1, 5)


def test_the_interval_holds_the_median_as_often_as_it_says():
    drawn = np.random.default_rng(0).normal(size=(2000, 15))
    intervals = [timing.median_interval(tuple(row)) for row in drawn]
    held = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.95 <= held < 0.985


def test_a_limit_is_the_lower_of_bytes_and_arithmetic():
    machine = limits.Machine(bandwidth=1e9, arithmetic=1e12, dtype="float32")
    assert limits.Cost(bytes=1e3).limit(machine) == (1e6, "bytes")
    assert limits.Cost(bytes=1e3, operations=1e7).limit(machine) == (1e5, "arithmetic")


def test_training_costs_what_its_layers_cost(setup):
    training = stage_timers.Training(
        setup.config.override({"model": "test_vit"}), setup.shards, setup.stats, 2, SECONDS
    )
    trainer = training.trainer
    cost = limits.training_cost(trainer)
    weights = sum(p.numel() for p in trainer.model.parameters())
    # AdamW keeps 2 numbers a weight, and the average is a third.
    assert cost.bytes == 2 * 4 * weights * 5 / 64 + 4 * 32 * 32
    # A product does two operations a weight, forward once and backward twice, at each of the patches.
    patches = (32 // 16) ** 2 + 1
    matrices = sum(m.weight.numel() for m in trainer.model.modules() if isinstance(m, torch.nn.Linear))
    assert cost.operations > 0.9 * 6 * matrices * patches


def test_every_stage_and_every_peer_is_told(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "SETTLE", 0)
    document = {**throughput._about(setup), **throughput.measure(setup, throughput.STAGES)}
    assert document["stages"].keys() == {"read", "pipeline", "mix", "model", "train"}
    assert document["peers"].keys() == {"emnist-dali, cpu", *peers.PEERS}
    for stage in document["stages"].values():
        assert len(stage["values"]) in (timing.REPETITIONS, timing.PAIRS)
        assert stage["low"] <= stage["images_per_second"] <= stage["high"]
        assert stage["share"] == pytest.approx(stage["images_per_second"] / stage["limit"])
    for name, peer in document["peers"].items():
        assert peer.get("missing") or (len(peer["values"]) == timing.REPETITIONS and peer["off_by_levels"] <= 1), name
    ratios = document["ratios"]
    assert len(ratios["pairs"]) == timing.PAIRS
    assert ratios["bound_share_95"][0] <= ratios["bound_share"] <= ratios["bound_share_95"][1]
    assert 0 <= ratios["data_wait"] <= 1
    assert ratios["to_best_dataloader"] == min(v for k, v in ratios["to_peers"].items() if k.startswith("DataLoader"))
    json.dumps(document)
    table = throughput.table(document)
    for name in [*document["stages"], *document["peers"]]:
        assert f"\n{name} " in table
    plot.draw(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_makes_other_images_is_not_timed(setup, monkeypatch):
    class Wrong:
        def batch(self) -> peers.Batch:
            return torch.zeros(64, 1, 32, 32), torch.arange(64)

        def close(self) -> None:
            pass

    def missing(_: peers.Work) -> peers.Peer:
        raise peers.Missing("It is not installed; install it.")

    monkeypatch.setattr(throughput, "SETTLE", 0)
    monkeypatch.setattr(peers, "PEERS", {"wrong": lambda _: Wrong(), "gone": missing})
    document = {**throughput._about(setup), **throughput.measure(setup, ("peers",))}
    assert "grey levels: not timed" in document["peers"]["wrong"]["wrong"]
    assert document["peers"]["gone"] == {"missing": "It is not installed; install it."}
    assert document["ratios"] == {"to_peers": {}}
    table = throughput.table(document)
    assert "missing: It is not installed" in table
    assert "not timed" in table


def test_the_command_ends_with_its_document(data_dir, tmp_path):
    stages_asked = "--stage read --stage mix --seconds 0.01"
    place = f"--split small --source glyphs --data-dir {data_dir} --json {tmp_path / 't.json'}"
    arguments = f"{stages_asked} {place} --device cpu --threads 1 --batch-size 64"
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
    assert document["config"]["model"]["model"] == "emnist_fast_small"


def test_scale_tells_each_size_batch_and_thread_count(setup, data_dir, monkeypatch):
    monkeypatch.setattr(growth, "RECORDS", (100, 1100))
    monkeypatch.setattr(growth, "BATCHES", (64, 128))
    monkeypatch.setattr(growth.packing, "SHARD_SAMPLES", 500)
    before = sorted(data_dir.rglob("*"))
    found = growth.measure(setup)
    assert [row["records"] for row in found["by_records"]] == [100, 1100]
    assert all(row["open_seconds"] < row["first_batch_seconds"] for row in found["by_records"])
    assert [row["batch_size"] for row in found["by_batch"]] == [64, 128]
    assert [row["threads"] for row in found["by_threads"]] == [1, 2]
    assert "1,100" in growth.table(found)
    assert sorted(data_dir.rglob("*")) == before


def test_a_grown_data_set_holds_the_real_records_again_and_again(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(growth.packing, "SHARD_SAMPLES", 700)
    growth._grow(setup.shards, tmp_path / "grown", 1500)
    grown = Shards(tmp_path / "grown", "train")
    assert len(grown) == 1500
    originals = np.arange(600)
    for start in (0, 700):
        np.testing.assert_array_equal(grown.images(originals + start), setup.shards.images(originals))
    np.testing.assert_array_equal(grown.labels(np.arange(1400, 1500)), setup.shards.labels(np.arange(100)))


@pytest.mark.parametrize("group", ["block", "queue", "ahead", "threads", "gathering", "codec", "warp"])
def test_each_group_of_settings_runs_and_marks_its_default(group, setup):
    measures = pipeline_settings.GROUPS[group](setup)
    assert sum(name.endswith("*") for name in measures) == 1
    assert all(measure() > 0 for measure in measures.values())


def test_time_to_accuracy_trains_on_everything_and_tests_once_a_run(data_dir, monkeypatch):
    asked = {"source": "glyphs", "data_dir": str(data_dir), "device": "cpu", "epochs": 2, "batch_size": 64}
    config = resolve(recipes.fast("small", gpu=False).override({**asked, "val_fraction": 0.0}))
    read = []
    real = time_to_accuracy.evaluation_loader
    monkeypatch.setattr(
        time_to_accuracy,
        "evaluation_loader",
        lambda c, shards, *rest: read.append(shards.part) or real(c, shards, *rest),
    )
    document = time_to_accuracy.measure(config, target=0.2, runs=2)
    assert read == ["test", "test"]
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
    base = ablation.change(ablation.baseline("small", 1), data=data, run={"device": "cpu"})
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
        found = document["variants"][ABLATED[1]][metric]
        first, second = (run[metric] - of[metric] for run, of in zip(other, base, strict=True))
        assert found["mean"] == pytest.approx(sum(run[metric] for run in other) / 2)
        assert found["sd"] == pytest.approx(abs(other[0][metric] - other[1][metric]) / 2**0.5)
        assert found["difference"] == pytest.approx((first + second) / 2)
        assert found["half_interval"] == pytest.approx(12.7062 * abs(first - second) / 2, rel=1e-4)
        assert "difference" not in document["variants"][ablation.BASELINE][metric]
    names = {run["run"] for runs in document["runs"].values() for run in runs}
    assert names == {"baseline-0", "baseline-1", "no-averaged-weights-0", "no-averaged-weights-1"}
    assert names == {path.name for path in out.iterdir()}
    assert json.loads(json.dumps(document))["runs"] == document["runs"]


def test_an_ablation_that_is_there_is_not_trained_again(ablated, monkeypatch):
    configs, out, document = ablated

    def trained(_: trainer.Trainer) -> dict:
        raise AssertionError

    monkeypatch.setattr(trainer.Trainer, "train_epoch", trained)
    assert ablation.measure(configs, 2, out)["runs"] == document["runs"]
    alone = ablation.measure({ABLATED[1]: configs[ABLATED[1]]}, 1, out)
    assert alone["runs"][ABLATED[1]] == document["runs"][ABLATED[1]][:1]
    assert alone["variants"][ABLATED[1]]["accuracy"].keys() == {"mean", "sd"}  # there is no baseline to differ from


def test_an_ablation_goes_on_with_its_record_where_the_run_folders_are_gone(ablated, tmp_path, monkeypatch):
    configs, _, document = ablated
    record = tmp_path / "record.json"
    first = {ABLATED[0]: configs[ABLATED[0]]}
    ran = []

    def run(config, path):
        ran.append(path.name)
        return document["runs"][ABLATED[path.name.startswith("no")]][config.training.seed]

    monkeypatch.setattr(ablation, "one_run", run)
    ablation.measure(first, 1, tmp_path, record)
    assert ablation.measure(configs, 2, tmp_path, record)["runs"] == document["runs"]
    assert ran == ["baseline-0", "no-averaged-weights-0", "baseline-1", "no-averaged-weights-1"]
    assert json.loads(record.read_text())["variants"] == document["variants"]
    elsewhere = {name: config.override({"out": "other", "seed": 7}) for name, config in configs.items()}
    ablation.measure(elsewhere, 2, tmp_path, record)
    assert len(ran) == 4
    longer = {name: config.override({"epochs": 2}) for name, config in configs.items()}
    ablation.measure(longer, 1, tmp_path, record)
    assert ran[4:] == ["baseline-0", "no-averaged-weights-0"]
    record.write_text(json.dumps({**document, "fingerprint": "of other data"}))
    with pytest.raises(UserError, match="no ablation on these data"):
        ablation.measure(configs, 1, tmp_path, record)


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
    found = document["variants"][ABLATED[1]]["accuracy"]
    assert cells[1][3] == f"{100 * found['mean']:.2f} ± {100 * found['sd']:.2f}"
    assert cells[1][4] == f"{100 * found['difference']:+.2f} ± {100 * found['half_interval']:.2f}"


def test_every_variant_of_the_ablation_differs_from_the_baseline_and_has_a_folder_of_its_own():
    base = ablation.baseline("balanced", 5)
    configs = {name: build(base) for name, build in ablation.VARIANTS.items()}
    assert configs.pop(ablation.BASELINE) == configs.pop("class weights") == base
    assert ablation.VARIANTS["class weights"](ablation.baseline("byclass", 5)) != ablation.baseline("byclass", 5)
    for name, config in configs.items():
        assert config != base, name
        assert config.training.epochs == 5, name
        assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert (config.model, config.data.batch_size, config.training.accumulation) == (
            base.model, base.data.batch_size, 1,
        )  # fmt: skip
        of_seed_3 = ablation.VARIANTS[name](ablation.change(base, training={"seed": 3}))
        assert of_seed_3 == ablation.change(config, training={"seed": 3}), name
    assert len({json.dumps(config.to_dict()) for config in configs.values()}) == len(configs)
    assert len({ablation._slug(name) for name in ablation.VARIANTS}) == len(ablation.VARIANTS)


def test_the_interval_of_a_mean_is_students():
    # Of 1, 2, 3, 4, 5: deviation √2.5, t = 2.7764 with 4 degrees of freedom.
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
    place = ["--split", "nonsense", "--data-dir", str(tmp_path), "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(ablation.main, place)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "no split 'nonsense'" in result.output


def test_gpu_check_records_what_failed_and_what_was_found():
    found = gpu_check.run("good", [sys.executable, "-c", "print('a'); print('{\"benchmark\": \"x\"}')"])
    assert (found["exit_code"], found["output"], found["document"]) == (0, "a", {"benchmark": "x"})
    failed = gpu_check.run("bad", [sys.executable, "-c", "print('b'); raise SystemExit(3)"])
    assert (failed["exit_code"], failed["output"], failed["document"]) == (3, "b", None)
    machine = {
        "gpu": None,
        "cpu": "CPU",
        "cpus": 2,
        "time": "2026-01-01T",
        "python": "3",
        "packages": {},
        "command": "c",
    }
    text = gpu_check.markdown({"machine": machine, "parts": {"good": found, "bad": failed}})
    assert "## good (" in text
    assert "failed with exit code 3" in text


def test_gpu_check_names_commands_that_exist(tmp_path):
    for device in ("cpu", "cuda"):
        data = ["--data-dir", "data"]
        for command in (gpu_check.parts(data, device, tmp_path) | gpu_check.accuracy(data, device)).values():
            files = [word for word in command if word.endswith(".py")]
            assert all(Path(file).is_file() for file in files)
            assert all(word.startswith(("-", "/")) or "/" not in word for word in command)


def test_without_a_gpu_gpu_check_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(gpu_check.main, [])
    assert result.exit_code == 1
    assert "--device cpu rehearses" in result.output
