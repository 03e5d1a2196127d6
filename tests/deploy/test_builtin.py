"""The model that comes with the package."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from emnist_dali.cli import main
from emnist_dali.config import Model
from emnist_dali.core.errors import UserError
from emnist_dali.data.emnist import SPLITS
from emnist_dali.data.pack import pack
from emnist_dali.data.prepare import split_folder
from emnist_dali.data.sources import load as load_source
from emnist_dali.deploy.predict import model_and_images
from emnist_dali.evaluation.evaluate import evaluate
from emnist_dali.models.build import build_model
from emnist_dali.runs.checkpoint import load_weights
from emnist_dali.runs.classifier import load_classifier
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.prediction_sets import prediction_set, threshold
from emnist_dali.runs.trained_classifier import TrainedClassifier
from emnist_dali.runs.typicality import UNTYPICAL
from emnist_dali.weights import FILE, FOLDER

from ..conftest import REAL
from .test_emnist_style import picture_of

CHARACTERS = "2345678ABEGHRT"
real = pytest.mark.skipif(not (REAL / "balanced").is_dir(), reason=f"{REAL} is missing")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working directory with a picture of each of CHARACTERS in a font, which EMNIST does not have."""
    for character in CHARACTERS:
        picture_of(character).save(tmp_path / f"{character}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def test_it_is_small():
    assert FILE.stat().st_size < 3e6


def test_it_reads_pictures_without_a_model_or_data(pictures):
    result = predict(*(f"{character}.png" for character in CHARACTERS), "--json")
    answers = json.loads(result.stdout)
    assert {answer["model"] for answer in answers} == {"builtin"}
    right = sum(answer["character"] == answer["path"][0] for answer in answers)
    assert right >= len(CHARACTERS) - 2


def test_its_name_names_it(pictures):
    assert predict("builtin", "2.png", "--json").stdout == predict("2.png", "--json").stdout


def test_its_classes_are_those_of_balanced():
    assert load_classifier().classes == load_classifier("builtin").classes
    assert len(load_classifier().classes) == len(SPLITS["balanced"].classes) == 47


def test_a_model_that_is_not_there_is_not_replaced_by_it(pictures):
    result = predict("runs/first", "2.png")
    assert result.exit_code == 1
    assert "runs/first is neither a model nor a picture" in result.output
    with pytest.raises(UserError, match="builtin is a model, and no picture is named"):
        model_and_images(["builtin"])


@pytest.mark.parametrize("first", ["", "a" * 300, "model.safetensors", "folder", "nothing", "*.jpg", "a\0b"])
def test_what_is_neither_a_model_nor_a_picture_is_refused(first, pictures):
    (pictures / "model.safetensors").write_bytes(b"weights")
    (pictures / "folder" / "checkpoints").mkdir(parents=True)
    result = predict(first, "2.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is neither a model nor a picture" in result.stderr


def test_a_folder_of_pictures_may_hold_other_files(pictures):
    (pictures / "labels.json").write_text("{}")
    result = predict(".", "--json")
    assert result.exit_code == 1  # for the file that is no picture
    assert len(json.loads(result.stdout)) == len(CHARACTERS)


def test_a_run_of_that_name_is_the_users_own(trained_run, tmp_path, monkeypatch):
    shutil.copytree(trained_run, tmp_path / "builtin")
    monkeypatch.chdir(tmp_path)
    for path in (Path("builtin"), "./builtin"):
        assert len(load_classifier(path).classes) == 12
    assert len(TrainedClassifier(Path("builtin")).classes) == 12


def test_another_model_is_taken_where_one_is_named(trained_run):
    assert model_and_images([str(trained_run), "a.png"]) == (str(trained_run), ["a.png"])
    assert model_and_images(["model.onnx", "a.png"]) == ("model.onnx", ["a.png"])


def test_training_starts_from_it():
    """All but the last layer, and that, too, where the classes are as many."""
    model = Model(model="emnist_fast_wide", pretrained=True, weights="builtin")
    same, other = (build_model(model, classes).state_dict() for classes in (47, 12))
    shipped = load_classifier().model.state_dict()
    assert [name for name in shipped if not same[name].equal(shipped[name])] == []
    assert [name for name in shipped if other[name].shape != shipped[name].shape] == ["head.weight", "head.bias"]
    assert other["stem.0.weight"].equal(shipped["stem.0.weight"])


@real
def test_it_is_as_accurate_as_its_card_says(tmp_path):
    """On RESULTS.md's Balanced test, in single precision, with probabilities that mean what they say."""
    source = load_source("balanced", str(REAL / "balanced"), tmp_path)
    pack(source, "balanced", split_folder(tmp_path, "balanced", None))
    test = evaluate("builtin", data_dir=tmp_path)["test"]
    assert test["images"] == 18_800
    assert test["accuracy"] > 0.902
    assert test["calibration_error"] < 0.012
    assert f"{test['accuracy']:.4f}" in (FOLDER / "README.md").read_text()


@pytest.fixture(scope="module")
def answers_to_the_test(tmp_path_factory):
    """Probabilities for each test image, and its label."""
    source = load_source("balanced", str(REAL / "balanced"), tmp_path_factory.mktemp("source"))
    images, labels = source.parts["test"].images, source.parts["test"].labels
    return load_classifier().probabilities(images), labels


@real
def test_its_sets_hold_the_true_character_as_often_as_they_say(answers_to_the_test):
    probabilities, labels = answers_to_the_test
    for coverage in (0.9, 0.95, 0.99):
        least = threshold(load_classifier().thresholds, coverage)
        sets = [prediction_set(row, least) for row in probabilities]
        held = np.mean([label in members for label, members in zip(labels, sets, strict=True)])
        assert coverage - 0.005 < held < coverage + 0.02
        assert np.mean(list(map(len, sets))) < 2


@real
def test_test_images_are_as_typical_as_those_that_were_held_out(answers_to_the_test):
    typicality = load_classifier().typicality(answers_to_the_test[0])
    assert (typicality < UNTYPICAL).mean() < 0.02
    assert 0.45 < (typicality < 0.5).mean() < 0.55


def test_it_holds_nothing_of_the_machine_that_trained_it():
    for path in filter(Path.is_file, FOLDER.rglob("*")):
        assert not any(place in path.read_bytes() for place in (b"/work", b"/home", b"/root", b"/tmp"))


def test_it_is_exported_to_a_file_that_is_named(tmp_path):
    before = sorted(FOLDER.rglob("*"))
    result = CliRunner().invoke(main, ["export", "builtin", "--format", "safetensors"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "add --output" in result.output
    output = tmp_path / "model.safetensors"
    result = CliRunner().invoke(main, ["export", "builtin", "--format", "safetensors", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert load_weights(output)[1]["name"] == "builtin"
    card = output.with_suffix(".md").read_text()
    assert "| test | 18,800 | 0.9030 |" in card
    assert card.count("Apache-2.0, as the package's.") == 1
    assert sorted(FOLDER.rglob("*")) == before


def test_its_metrics_are_those_of_its_card():
    (entry,) = RunFolder(FOLDER).entries()
    assert entry["kind"] == "test"
    assert f"| test | {entry['images']:,} | {entry['accuracy']:.4f} |" in (FOLDER / "README.md").read_text()


def test_its_card_has_dataset_licence_and_metrics_for_the_hub():
    metadata = ModelCard((FOLDER / "README.md").read_text()).data
    assert (metadata.license, metadata.datasets, metadata.metrics) == ("apache-2.0", ["emnist"], ["accuracy", "f1"])
    accuracy, f1 = metadata.eval_results
    assert (accuracy.dataset_type, accuracy.dataset_config, accuracy.dataset_split) == ("emnist", "balanced", "test")
    assert (accuracy.metric_value, f1.metric_type) == (0.903, "f1")


def test_blank_images_are_no_obstacle():
    probabilities = load_classifier().probabilities(np.zeros((2, 28, 28), np.uint8))
    assert probabilities.shape == (2, 47)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
