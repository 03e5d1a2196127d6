import numpy as np
import pytest
import torch

from emnist_dali.core.errors import UserError
from emnist_dali.data.shards import Shards
from emnist_dali.evaluation.evaluate import predict_run
from emnist_dali.runs.classifier import TrainedClassifier, load_classifier

CLASSES = "0123456789Aa"


def test_a_run_takes_images_and_says_what_its_evaluation_said(trained_run, folder):
    trained = load_classifier(trained_run)
    shards = Shards(folder, "test")
    found = trained.probabilities(shards.images(np.arange(len(shards))))
    _, predictions = predict_run(trained_run)
    assert found.shape == (108, 12)
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), predictions["test"].probabilities, rtol=0, atol=1e-5)
    assert (found.argmax(1) == shards.labels()).mean() > 0.6


def test_a_run_knows_what_it_was_trained_on(trained_run):
    trained = TrainedClassifier(trained_run)
    assert (trained.name, trained.classes, trained.shape, trained.converted) == (
        "run",
        tuple(CLASSES),
        (28, 28),
        True,
    )
    assert trained.probabilities(np.empty((0, 28, 28), np.uint8)).shape == (0, 12)


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_classifier(tmp_path)
