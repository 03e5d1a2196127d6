import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import exported
from emnist_dali.core.errors import UserError
from emnist_dali.data.shards import Shards
from emnist_dali.deploy.export import export
from exported import main, measure
from web_page import WebPage


@pytest.fixture(scope="module")
def models(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(trained_run, "onnx", folder / "float.onnx")
    export(trained_run, "onnx", folder / "int8.onnx", int8=True)
    return [str(folder / f"{name}.onnx") for name in ("float", "int8")]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Timings, which are not looked at closely."""
    monkeypatch.setattr(exported, "WARM_UP", 1)
    monkeypatch.setattr(exported, "TIMED", 3)


def test_accuracy_is_that_of_the_run(models, trained_run, data_dir, tmp_path):
    path = tmp_path / "result.json"
    arguments = [
        str(trained_run),
        *models,
        "--split",
        "small",
        "--data-dir",
        str(data_dir / "demo"),
        "--json",
        str(path),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(path.read_text())
    assert json.loads(result.output.splitlines()[-1]) == document
    run, exact, int8 = document["results"]
    assert 0.9 * exact["bytes"] < run["bytes"] < exact["bytes"]
    assert run["accuracy"] == exact["accuracy"]
    assert all(each["milliseconds"] > 0 < each["milliseconds_from_drawing"] for each in document["results"])
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


def test_a_page_classifies_as_its_onnx_file_does(site, browser, folder, monkeypatch):
    # The tests' browser, since a process can start one only.
    monkeypatch.setattr(exported, "open_page", lambda path: nullcontext(WebPage(browser.new_page(), path)))
    page, onnx = measure([site, site / "model.onnx"], Shards(folder, "test"))["results"]
    assert page["file"] == "web/"
    assert page["accuracy"] == onnx["accuracy"]
    assert onnx["same_class"] == 1
    assert page["milliseconds"] > 0 < page["milliseconds_from_drawing"]
