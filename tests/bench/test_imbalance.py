"""Methods against imbalance are compared on the same net, the same number of steps and the same images."""

import json

import pytest
from click.testing import CliRunner

import imbalance
import time_to_accuracy
from emnist_dali import recipes
from emnist_dali.core.errors import UserError
from emnist_dali.runtime import resolve


@pytest.fixture
def base(data_dir):
    options = {"source": "glyphs", "data_dir": str(data_dir), "device": "cpu", "batch_size": 64, "val_fraction": 0.0}
    return resolve(recipes.fast_cpu("small").override(options))


@pytest.fixture
def calls(monkeypatch):
    """Configs of the trainings, of which none runs."""
    seen = []

    def run(config, shards):
        seen.append(config)
        metrics = {metric: 0.5 + 0.1 * config.training.seed for metric in imbalance.METRICS}
        return {"seed": config.training.seed, **metrics}

    monkeypatch.setattr(time_to_accuracy, "run", run)
    return seen


def test_methods_differ_in_one_thing(base, calls):
    document = imbalance.measure(base, 2)
    assert [(run["method"], run["seed"]) for run in document["runs"]] == [
        (method, seed) for seed in range(2) for method in imbalance.METHODS
    ]
    for config, method in zip(calls, 2 * list(imbalance.METHODS), strict=True):
        used = {
            "class weights": config.training.class_weights,
            "logit adjustment": config.training.logit_adjustment == 1,
            "balanced sampling": config.training.balanced_sampling,
        }
        assert {name for name, value in used.items() if value} == {method} - {"nothing"}


def test_what_the_file_holds_is_not_repeated(base, calls, tmp_path):
    path = tmp_path / "imbalance.json"
    imbalance.measure(base, 2, path)
    calls.clear()
    document = imbalance.measure(base, 3, path)
    assert [config.training.seed for config in calls] == 4 * [2]
    assert json.loads(path.read_text())["runs"] == document["runs"]
    assert "| nothing | 3 | 60.00 ± 10.00 | 0.6000 ± 0.1000 |" in imbalance.table(document)
    with pytest.raises(UserError, match="another config"):
        imbalance.measure(base.override({"batch_size": 32}), 3, path)


def test_the_command_trains_and_ends_with_its_document(data_dir, monkeypatch):
    monkeypatch.setattr(
        imbalance, "METHODS", {name: imbalance.METHODS[name] for name in ("nothing", "balanced sampling")}
    )
    options = ["--split", "small", "--source", "glyphs", "--data-dir", str(data_dir), "--epochs", "1", "--seeds", "2"]
    result = CliRunner().invoke(imbalance.main, options)
    assert result.exit_code == 0, result.output
    runs = json.loads(result.output.splitlines()[-1])["runs"]
    assert all(0 <= run[metric] <= 1 for run in runs for metric in imbalance.METRICS)
