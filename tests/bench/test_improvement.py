"""`published` and `improved` are compared on equal terms."""

import json

from click.testing import CliRunner

import improvement


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
    for setting in ("epochs", "accumulation", "lr"):
        assert published["training"][setting] == improved["training"][setting]
    assert published["training"]["mixing"]
    assert not improved["training"]["mixing"]
