"""Configs are compared on the same data and seeds, and what was measured is not repeated."""

import json

import pytest

import comparison
import time_to_accuracy
from emnist_dali import recipes
from emnist_dali.core.errors import UserError
from emnist_dali.runtime import resolve


@pytest.fixture
def configs(data_dir):
    options = {"source": "glyphs", "data_dir": str(data_dir), "device": "cpu", "batch_size": 64, "val_fraction": 0.0}
    base = recipes.fast_cpu("small").override(options)
    return {"as it is": resolve(base), "slower": resolve(base.override({"lr": 0.01}))}


@pytest.fixture
def calls(monkeypatch):
    """Configs of the trainings, of which none runs."""
    seen = []

    def run(config, shards):
        seen.append(config)
        seed = config.training.seed
        return {"seed": seed, "accuracy": 0.5 + 0.1 * seed + (0.02 if config.training.lr == 0.01 else 0.0)}

    monkeypatch.setattr(time_to_accuracy, "run", run)
    return seen


def test_every_config_is_run_with_every_seed(configs, calls):
    document = comparison.measure("trial", configs, 2)
    assert [(run["name"], run["seed"]) for run in document["runs"]] == [
        (name, seed) for seed in range(2) for name in configs
    ]
    assert calls == [config.override({"seed": seed}) for seed in range(2) for config in configs.values()]


def test_what_the_file_holds_is_not_repeated(configs, calls, tmp_path):
    path = tmp_path / "trial.json"
    comparison.measure("trial", configs, 2, path)
    calls.clear()
    document = comparison.measure("trial", configs, 3, path)
    assert [config.training.seed for config in calls] == 2 * [2]
    assert json.loads(path.read_text())["runs"] == document["runs"]
    other = {name: config.override({"batch_size": 32}) for name, config in configs.items()}
    with pytest.raises(UserError, match="other configs"):
        comparison.measure("trial", other, 3, path)
    with pytest.raises(UserError, match="not a result file of another"):
        comparison.measure("another", configs, 3, path)


def test_a_file_from_before_it_held_configs_is_refused(configs, tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"benchmark": "trial", "fingerprint": "", "config": {}, "runs": []}')
    with pytest.raises(UserError, match="other configs"):
        comparison.measure("trial", configs, 2, path)


def test_differences_are_those_at_equal_seeds(configs, calls):
    table = comparison.table(comparison.measure("trial", configs, 3), ("accuracy",))
    assert table.splitlines() == [
        "| | seeds | accuracy, % | difference |",
        "|---|---|---|---|",
        "| as it is | 3 | 60.00 ± 10.00 |  |",
        "| slower | 3 | 62.00 ± 10.00 | +2.00 ± 0.00 |",
    ]
