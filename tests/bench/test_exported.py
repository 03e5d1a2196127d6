import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from emnist_dali.core.errors import UserError
from emnist_dali.data.shards import Shards
from emnist_dali.deploy.export import export
from exported import main, measure


@pytest.fixture(scope="module")
def models(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(trained_run, "onnx", folder / "float.onnx")
    export(trained_run, "onnx", folder / "int8.onnx", int8=True)
    return [str(folder / f"{name}.onnx") for name in ("float", "int8")]


def test_accuracy_is_that_of_the_run(models, trained_run, data_dir, tmp_path):
    path = tmp_path / "result.json"
    arguments = [*models, "--split", "small", "--data-dir", str(data_dir / "demo"), "--json", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(path.read_text())
    assert json.loads(result.output.splitlines()[-1]) == document
    exact, int8 = document["results"]
    test = next(line for line in map(json.loads, (trained_run / "metrics.jsonl").open()) if line["kind"] == "test")
    assert exact["accuracy"] == pytest.approx(test["accuracy"], abs=1e-6)
    assert (document["data"]["images"], exact["same_class"]) == (108, 1)
    assert int8["bytes"] < 0.3 * exact["bytes"]
    assert 0.9 < int8["same_class"] <= 1


def test_models_of_other_classes_are_refused(models, folder):
    test = Shards(folder, "test")
    test.manifest = replace(test.manifest, classes=test.manifest.classes[::-1])
    with pytest.raises(UserError, match=r"float\.onnx has other classes than .*; name its --split"):
        measure(tuple(map(Path, models)), test)
