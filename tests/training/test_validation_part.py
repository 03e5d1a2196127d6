"""A split with a validation part: it validates, whatever data.val_fraction says, and all of train is trained on."""

from dataclasses import replace

import pytest

from emnist_dali.data.pack import pack
from emnist_dali.data.sources import Part
from emnist_dali.deploy.int8 import Sample
from emnist_dali.evaluation.evaluate import evaluate
from emnist_dali.runs.checkpoint import load_weights
from emnist_dali.runs.trained_classifier import TrainedClassifier
from emnist_dali.training.session import train

from ..training_runs import lines, quick


@pytest.fixture
def split(drawn, tmp_path):
    """A --data-dir with train, test and 36 validation images of which the test has none."""
    unseen = drawn.parts["unseen"]
    parts = {"train": drawn.parts["train"], "test": drawn.parts["test"]}
    parts["validation"] = Part(unseen.images[:36], unseen.labels[:36])
    pack(replace(drawn, parts=parts), "small", tmp_path / "data" / "demo" / "small")
    return tmp_path / "data"


def test_it_validates(split, tmp_path, capsys):
    run = train(quick(split, tmp_path / "run", epochs=1, val_fraction=0.0))
    assert "600 images, 36 more for validation (the split's own" in capsys.readouterr().out
    epoch = next(entry for entry in lines(run) if entry["kind"] == "epoch")
    results = evaluate(run.path, validation=True)
    assert results["validation"]["images"] == 36
    assert results["validation"]["accuracy"] == pytest.approx(epoch["val_accuracy"])
    assert list(evaluate(run.path)) == ["test"]
    assert load_weights(run.best)[1]["own_validation"] is True
    sample = Sample.of(TrainedClassifier(run.path))
    assert sample.description.endswith("other training images")
