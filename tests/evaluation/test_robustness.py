import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.data import glyphs
from emnist_dali.data.emnist import SPLITS
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.evaluation import inference
from emnist_dali.evaluation.corruptions import CONDITIONS, corrupted
from emnist_dali.evaluation.evaluate import evaluate
from emnist_dali.evaluation.robustness import measure_robustness, table
from emnist_dali.evaluation.significance import wilson
from emnist_dali.runs import schema
from emnist_dali.runs.trained_classifier import TrainedClassifier
from emnist_dali.weights import FOLDER


@pytest.fixture(scope="module")
def measured(trained_run, tmp_path_factory):
    """A copy of the run, and its robustness."""
    run = tmp_path_factory.mktemp("robust") / "run"
    shutil.copytree(trained_run, run)
    return run, measure_robustness(run)


@pytest.fixture
def run(measured, tmp_path):
    """A copy without its table."""
    run = tmp_path / "run"
    shutil.copytree(measured[0], run)
    (run / "robustness.json").unlink()
    return run


@pytest.fixture
def few(monkeypatch):
    """Only two of the conditions."""
    two = dict(list(CONDITIONS.items())[:2])
    monkeypatch.setattr("emnist_dali.evaluation.robustness.CONDITIONS", two)


def invoke(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--robustness"])


def test_the_uncorrupted_accuracy_is_that_of_evaluate(measured, trained_run):
    _, result = measured
    test = evaluate(trained_run)["test"]
    assert result["images"] == test["images"] == 108
    assert result["accuracy"] == pytest.approx(test["accuracy"], abs=1e-6)
    assert list(result["conditions"]) == list(CONDITIONS)


def test_a_cell_is_the_accuracy_on_the_corrupted_images(measured, folder):
    run, result = measured
    shards, model = Shards(folder, "test"), TrainedClassifier(run)
    indices = np.arange(len(shards))
    for name, severity in (("blur", 3), ("noise", 2), ("rotation", 1)):
        worse = corrupted(shards.images(indices), name, severity, indices)
        right = int((model.probabilities(worse).argmax(1) == shards.labels()).sum())
        cell = result["conditions"][name]
        assert cell["accuracy"][severity - 1] == right / 108
        assert tuple(cell["interval"][severity - 1]) == wilson(right, 108)


def test_the_means_are_those_of_the_cells(measured):
    _, result = measured
    cells = [accuracy for condition in result["conditions"].values() for accuracy in condition["accuracy"]]
    assert len(cells) == 27
    assert result["mean_accuracy"] == pytest.approx(sum(cells) / 27)
    assert result["mean_relative_accuracy"] == pytest.approx(sum(cells) / 27 / result["accuracy"])
    assert min(cells) < result["accuracy"] - 0.2  # the worst is bad


def test_the_size_of_the_batches_changes_nothing(measured, run, few, monkeypatch):
    monkeypatch.setattr("emnist_dali.evaluation.robustness._IMAGES", 25)
    for name, condition in measure_robustness(run)["conditions"].items():
        assert condition == measured[1]["conditions"][name]


def test_the_table_has_every_cell(measured):
    _, result = measured
    lines = table(result).splitlines()
    assert lines[0].split("  ")[0] == "accuracy, %"
    assert f"{100 * result['accuracy']:.2f} (" in lines[1]
    assert [line.split("  ")[0] for line in lines[2:11]] == list(CONDITIONS)
    for line, (name, condition) in zip(lines[2:11], result["conditions"].items(), strict=True):
        for accuracy, (low, high) in zip(condition["accuracy"], condition["interval"], strict=True):
            assert f"{100 * accuracy:.2f} ({100 * low:.2f}–{100 * high:.2f})" in line
        assert line.endswith(", ".join(f"{amount:g}" for amount in CONDITIONS[name].amounts))
    assert f"Mean accuracy {100 * result['mean_accuracy']:.2f} %" in lines[-1]
    assert max(map(len, lines)) < 140


def test_a_model_that_is_never_right_has_no_relative_accuracy(measured):
    never = {**measured[1], "accuracy": 0.0, "mean_relative_accuracy": None}
    assert table(never).endswith(" %.")


def test_json_is_the_last_line_and_what_the_run_keeps(measured, run):
    done = invoke(run, "--json")
    assert done.exit_code == 0, done.output
    *lines, last = done.output.splitlines()
    result = json.loads(last)
    assert "\n".join(lines).endswith(table(result))
    kept = schema.read_robustness(run / "robustness.json")
    assert {name: kept[name] for name in result} == result == json.loads(json.dumps(measured[1]))


def test_runs_answer_by_their_mean_and_keep_nothing(measured, run, few):
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    together = measure_robustness([run, copy])
    assert together["accuracy"] == measured[1]["accuracy"]
    for name, condition in together["conditions"].items():
        assert condition == measured[1]["conditions"][name]
    assert not (run / "robustness.json").exists()


def test_runs_of_other_images_are_one_sentence(run, drawn, tmp_path):
    parts = {name: Part(part.images[::-1], part.labels[::-1]) for name, part in drawn.parts.items()}
    pack(replace(drawn, parts=parts), "small", tmp_path / "data" / "demo" / "small")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = read_json(other / "config.json")
    config["data"]["data_dir"] = str(tmp_path / "data")
    write_json(other / "config.json", config)
    done = invoke(run, other)
    assert done.exit_code == 1
    assert "other test images than" in done.output


def test_larger_images_with_dark_strokes_are_read(run, drawn, few, tmp_path):
    """Of the run's classes in another split, which the run does not keep."""
    parts = {
        name: Part(255 - part.images.repeat(2, 1).repeat(2, 2), part.labels) for name, part in drawn.parts.items()
    }
    pack(replace(drawn, parts=parts), "large", tmp_path / "demo" / "large")
    result = measure_robustness(run, "large", tmp_path)
    test = evaluate(run, "large", tmp_path)["test"]
    assert result["accuracy"] == pytest.approx(test["accuracy"], abs=1e-6)
    assert result["images"] == 108
    assert not (run / "robustness.json").exists()
    assert "only printed" in invoke(run, "--split", "large", "--data-dir", tmp_path).output


def test_a_trial_is_measured_on_the_images_that_it_is_evaluated_on(run, few, monkeypatch):
    monkeypatch.setattr(inference, "TRIAL_IMAGES", 31)
    config = read_json(run / "config.json")
    config["training"]["steps"] = 7
    write_json(run / "config.json", config)
    assert measure_robustness(run)["images"] == 31


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("name", ["builtin", str(FOLDER)])
def test_nothing_is_written_into_the_package(name, few, tmp_path):
    classes = SPLITS["balanced"].classes
    parts = glyphs.draw(classes, per_class=1, test_per_class=1)
    source = Source("x", classes, {part: Part(*parts[part]) for part in ("train", "test")}, (), official=False)
    pack(source, "balanced", tmp_path / "balanced")
    before = listing(FOLDER)
    done = invoke(name, "--data-dir", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[-1])["accuracy"] > 0.5
    assert listing(FOLDER) == before


def test_somebody_elses_file_is_not_replaced(run, monkeypatch):
    (run / "robustness.json").write_text("mine")
    monkeypatch.setattr("emnist_dali.evaluation.robustness.open_run", None)  # no work is done for it
    with pytest.raises(UserError, match=r"robustness\.json already exists and was not written by emnist-dali"):
        measure_robustness(run)
    assert (run / "robustness.json").read_text() == "mine"


def test_a_table_is_replaced_by_a_newer_one(run, few):
    for _ in range(2):
        measure_robustness(run)
    assert list(schema.read_robustness(run / "robustness.json")["conditions"]) == ["blur", "noise"]


def test_a_table_that_cannot_be_kept_is_printed(run, few, monkeypatch):
    def full(path, content):
        raise UserError(f"{path} could not be written (No space left on device); free up space there.")

    monkeypatch.setattr("emnist_dali.evaluation.robustness.write_json", full)
    done = invoke(run)
    assert done.exit_code == 0
    assert "The table is only printed: " in done.output
    assert "Mean accuracy" in done.output


def test_the_held_out_images_are_not_for_it(trained_run):
    done = invoke(trained_run, "--validation")
    assert done.exit_code == 2
    assert "leave out --validation" in done.output


def test_a_run_without_weights_is_one_sentence(run):
    (run / "checkpoints/best.safetensors").unlink()
    done = invoke(run)
    assert done.exit_code == 1
    assert "best.safetensors is missing" in done.output
