"""One recipe on several sets; runs that the result file holds are not repeated."""

import json

from click.testing import CliRunner

import other_sets
from emnist_dali.data.pack import pack
from emnist_dali.runs.folder import RunFolder


def test_each_set_is_trained_tested_and_kept(drawn, trained_run, tmp_path, monkeypatch):
    manifest = pack(drawn, "small", tmp_path / "data" / "small")
    trained = []
    monkeypatch.setattr(other_sets, "train", lambda config: trained.append(config) or RunFolder(trained_run))
    options = ["--set", "small", "--recipe", "fast", "--device", "cpu", "--epochs", "1"]
    options += ["--data-dir", str(tmp_path / "data"), "--json", str(tmp_path / "result.json")]
    for seeds in ("1", "2"):
        result = CliRunner().invoke(other_sets.main, [*options, "--seeds", seeds])
        assert result.exit_code == 0, result.output
    runs = json.loads(result.output.splitlines()[-1])["runs"]
    assert [(run["set"], run["seed"], run["images"]) for run in runs] == [("small", 0, 108), ("small", 1, 108)]
    assert 0 <= runs[0]["accuracy"] <= 1
    assert (runs[0]["official"], runs[0]["fingerprint"]) == (False, manifest.fingerprint)
    assert "| small, not as published | 2 | 108 |" in result.output
    assert [(config.training.seed, config.data.batch_size) for config in trained] == [(0, 32), (1, 32)]
    result = CliRunner().invoke(other_sets.main, [*options, "--epochs", "2"])
    assert "is of another recipe or other epochs" in result.output
    result = CliRunner().invoke(other_sets.main, [*options, "--set", "smal"])
    assert "There is no set 'smal'" in result.output
    document = json.loads((tmp_path / "result.json").read_text())
    for change, sentence in (
        ({"machine": {**document["machine"], "cpus": 0}}, "is of another machine or device"),
        ({"runs": [{**runs[0], "fingerprint": "0"}]}, "has runs on other images of small"),
    ):
        (tmp_path / "result.json").write_text(json.dumps({**document, **change}))
        assert sentence in CliRunner().invoke(other_sets.main, options).output
    assert len(trained) == 2
