"""The speed run's rules, and that its page shows its records."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from emnist_dali.config import Model
from emnist_dali.models.build import build_model
from speedrun import against, ideas, run

DATA = {"source": "glyphs", "epochs": 1}


def test_the_mean_is_above_the_bound_by_students_test():
    values = [0.901, 0.899, 0.9005, 0.902]
    bound = run.lower_bound(values)
    assert stats.ttest_1samp(values, bound, alternative="greater").pvalue == pytest.approx(0.05)


@pytest.fixture(scope="module")
def document(data_dir):
    row = run.Row(
        target=0.05, device="cpu", config=lambda split: run.recipes.fast_cpu(split).override({"batch_size": 64})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run.ROWS, "cpu-5", row)
        patch.setattr(run, "yardstick", lambda config: {"arithmetic": 1e12, "bandwidth": 1e10, "dtype": "float32"})
        return run.measure("cpu-5", "small", 2, {**DATA, "data_dir": str(data_dir)})


def test_a_row_is_reached_when_its_mean_is_surely_above_the_target(document):
    accuracies = [result["accuracy"] for result in document["runs"]]
    assert document["accuracy_lower_bound"] == pytest.approx(run.lower_bound(accuracies))
    assert document["reached"] == (document["accuracy_lower_bound"] >= 0.05)
    assert document["config"]["data"]["val_fraction"] == 0
    assert document["config"]["training"]["epochs"] == 1
    assert "cpu-5" in run.sentence(document)


def test_the_table_has_every_row_and_every_record(document):
    record = document | {"row": "cpu-89.5", "file": "a.json"}
    lines = run.table([record]).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [*run.ROWS]
    assert "a.json" in lines[0]
    assert "1.00 TFLOP/s" in lines[0]
    assert all("not run" in line for line in lines[1:])


def test_the_page_shows_the_records():
    shown = CliRunner().invoke(run.main, ["--table"]).output.strip()
    assert shown in (Path(run.__file__).parent / "README.md").read_text()


def test_every_record_reached_its_target_with_ten_seeds_from_a_commit():
    for record in run.records():
        assert record["reached"], record["file"]
        assert record["target"] == run.ROWS[record["row"]].target
        assert len(record["runs"]) >= 10
        assert len(record["commit"]) == 40


@pytest.mark.parametrize("names", [(), ("cpu-89.5", "cpu-90.0")])
def test_a_result_file_is_of_one_row(names, tmp_path):
    result = CliRunner().invoke(run.main, [*names, "--json", str(tmp_path / "a.json")])
    assert result.exit_code == 2
    assert "name one ROW" in result.output


def test_a_record_is_not_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"benchmark": "speedrun"}')
    result = CliRunner().invoke(run.main, ["cpu-89.5", "--json", str(path)])
    assert result.exit_code == 1
    assert "a record is not replaced" in result.output
    assert path.read_text() == '{"benchmark": "speedrun"}'


def test_every_idea_is_one_change_of_the_recipe_that_trains():
    base = run.recipes.fast_cpu("balanced")
    configs = {name: change(base) for name, change in ideas.IDEAS.items()}
    assert configs.pop("fast") == base
    assert all(config != base for config in configs.values())
    assert len({json.dumps(config.to_dict()) for config in configs.values()}) == len(configs)


def test_every_idea_for_a_gpu_is_another_config_and_its_net_can_be_made():
    base = run.recipes.fast("balanced")
    configs = {name: change(base) for name, change in ideas.GPU_IDEAS.items()}
    assert base in configs.values()
    assert len({json.dumps(config.to_dict()) for config in configs.values()}) == len(configs)
    for model in {config.model.model for config in configs.values()}:
        net = build_model(Model(model=model, pretrained=False), 47).eval()
        assert net(torch.zeros(2, 1, 24, 24)).shape == (2, 47)


def test_ideas_are_judged_by_images_held_out(data_dir, tmp_path):
    config = run.recipes.fast_cpu("small").override(
        {**DATA, "data_dir": str(data_dir), "batch_size": 64, "val_fraction": 0.2, "device": "cpu"}
    )
    document = ideas.measure({"fast": config, "a slower one": config.override({"lr": 0.01})}, 1, tmp_path / "a.json")
    assert {name: len(runs) for name, runs in document["runs"].items()} == {"fast": 1, "a slower one": 1}
    right = document["runs"]["fast"][0]["accuracy"] * 120  # of 600; the test part has 108
    assert right == pytest.approx(round(right), abs=1e-3)
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(document))
    assert "| a slower one |" in ideas.table(document)


@pytest.fixture
def turns(monkeypatch):
    """What would have run where: the other tree needs 4 s for each of ours."""
    seen = []

    def one(tree, recipe, split, seed, changes):
        seen.append((tree == against.TREE, recipe, seed))
        assert (tree / "bench" / "time_to_accuracy.py").exists()
        return {"seed": seed, "accuracy": 0.9, "seconds": 1.0 if tree == against.TREE else 4.0}

    monkeypatch.setattr(against, "_run", one)
    return seen


needs_git = pytest.mark.skipif(run.commit() is None, reason="not a git repository")


@needs_git
def test_a_row_and_a_commit_take_turns(turns, data_dir):
    document = against.measure("cpu-89.75", "HEAD", 3, "small", {"data_dir": str(data_dir), "device": "cpu"})
    assert [ours for ours, _, _ in turns] == [True, False] * 3
    assert [recipe for ours, recipe, _ in turns if not ours] == ["fast"] * 3
    assert [seed for _, _, seed in turns] == [0, 0, 1, 1, 2, 2]
    assert document["ratio"] == {"mean": 0.25, "sd": 0.0}
    listed = subprocess.run(["git", "-C", against.TREE, "worktree", "list"], capture_output=True, text=True).stdout
    assert "/tree " not in listed


@needs_git
def test_a_commit_that_is_not_there_is_one_sentence(data_dir):
    result = CliRunner().invoke(against.main, ["cpu-89.75", "--commit", "no-such", "--data-dir", str(data_dir)])
    assert result.exit_code == 1
    assert "has no commit no-such" in result.output
