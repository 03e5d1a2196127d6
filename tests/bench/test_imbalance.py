"""Methods against imbalance are compared on the same net, with one change each."""

import json

from click.testing import CliRunner

import imbalance


def test_methods_differ_in_one_thing_and_the_command_ends_with_its_document(data_dir, monkeypatch):
    monkeypatch.setattr(
        imbalance, "METHODS", {name: imbalance.METHODS[name] for name in ("nothing", "balanced sampling")}
    )
    options = ["--split", "small", "--source", "glyphs", "--data-dir", str(data_dir), "--epochs", "1", "--seeds", "2"]
    result = CliRunner().invoke(imbalance.main, options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.output.splitlines()[-1])
    assert all(0 <= run[metric] <= 1 for run in document["runs"] for metric in imbalance.METRICS)
    nothing, sampled = (document["configs"][name]["training"] for name in imbalance.METHODS)
    assert {name for name in nothing if nothing[name] != sampled[name]} == {"balanced_sampling"}
