"""Methods against imbalance are compared on the same net, with one change each."""

import json

from click.testing import CliRunner

import comparison
import imbalance

SCORES = dict.fromkeys(imbalance.METRICS, 0.5)


def test_methods_differ_in_one_thing_and_the_command_ends_with_its_document(data_dir, monkeypatch):
    def run(config, shards):
        return {"seed": config.training.seed, **SCORES}

    monkeypatch.setattr(comparison.time_to_accuracy, "run", run)
    options = ["--split", "small", "--source", "glyphs", "--data-dir", str(data_dir), "--epochs", "1", "--seeds", "2"]
    result = CliRunner().invoke(imbalance.main, options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.output.splitlines()[-1])
    assert len(document["runs"]) == 2 * len(imbalance.METHODS)
    nothing, *others = (config["training"] for config in document["configs"].values())
    changed = [{name for name in nothing if nothing[name] != other[name]} for other in others]
    assert changed == [{"class_weights"}, {"logit_adjustment"}, {"balanced_sampling"}]
