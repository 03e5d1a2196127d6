"""`published` and `improved` are compared on equal terms, each with a schedule of its own shape."""

import json

import pytest
from click.testing import CliRunner

import improvement
from emnist_dali import recipes


@pytest.mark.parametrize("epochs", [5, 10, 40])
def test_a_shortened_schedule_keeps_its_shape(epochs):
    for whole in (recipes.published("balanced"), recipes.improved("balanced"), recipes.published("byclass")):
        short = improvement.shortened(whole, epochs).training
        assert short.epochs == epochs
        assert short.warmup / epochs == pytest.approx(whole.training.warmup / whole.training.epochs)
        assert abs(short.restart_every - epochs * whole.training.restart_every / whole.training.epochs) <= 0.5
        assert short.lr == whole.training.lr


def test_the_command_compares_the_recipes_on_equal_terms(data_dir):
    options = ["--split", "small", "--source", "glyphs", "--data-dir", str(data_dir), "--model", "test_efficientnet"]
    result = CliRunner().invoke(improvement.main, [*options, "--images", "300", "--epochs", "2", "--seeds", "2"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.output.splitlines()[-1])
    assert [run["name"] for run in document["runs"]] == ["published", "improved"] * 2
    published, improved = document["configs"].values()
    assert published["model"]["model"] == improved["model"]["model"] == "test_efficientnet"
    for setting in ("val_fraction", "image_size", "batch_size"):
        assert published["data"][setting] == improved["data"][setting]
    assert published["training"]["epochs"] == improved["training"]["epochs"] == 2
    assert published["training"]["mixing"]
    assert not improved["training"]["mixing"]
