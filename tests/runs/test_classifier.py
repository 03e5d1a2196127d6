import shutil

import numpy as np
import pytest
import torch

from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.data.shards import Shards
from emnist_dali.evaluation.evaluate import predict_run
from emnist_dali.models.build import build_model
from emnist_dali.runs import trained_classifier
from emnist_dali.runs.classifier import load_classifier
from emnist_dali.runs.trained_classifier import TrainedClassifier
from emnist_dali.training.session import train
from tests.training_runs import quick

CLASSES = "0123456789Aa"


def test_a_classifier_agrees_with_the_evaluation_of_its_run(trained_run, folder):
    trained = load_classifier(trained_run)
    shards = Shards(folder, "test")
    probabilities = trained.probabilities(shards.images(np.arange(len(shards))))
    _, predictions = predict_run(trained_run)
    assert probabilities.shape == (108, 12)
    assert probabilities.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(probabilities), predictions["test"].probabilities, rtol=0, atol=1e-5)
    assert (probabilities.argmax(1) == shards.labels()).mean() > 0.6


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 24, 24), "u1"), ((1, 784), "u1"), ((28, 28), "u1"), ((2, 28, 28), "f4")]
)
def test_images_of_another_shape_or_type_are_refused(trained_run, shape, dtype):
    with pytest.raises(UserError, match=r"takes images \(N, 28, 28\) uint8, not"):
        load_classifier(trained_run).probabilities(np.zeros(shape, dtype))


def test_a_classifier_describes_its_inputs_and_outputs(trained_run):
    trained = TrainedClassifier(trained_run)
    assert (trained.name, trained.classes, trained.shape, trained.converted) == (
        "run",
        tuple(CLASSES),
        (28, 28),
        True,
    )
    assert trained.probabilities(np.empty((0, 28, 28), np.uint8)).shape == (0, 12)


@pytest.mark.parametrize(("count", "device"), [(1, "cuda"), (2, "cuda:1")])
def test_a_run_of_a_gpu_that_is_not_here_is_read_by_another(count, device, trained_run, tmp_path, monkeypatch):
    config = read_json(trained_run / "config.json")
    config["run"]["device"] = "cuda:1"
    shutil.copytree(trained_run, tmp_path / "run")
    write_json(tmp_path / "run" / "config.json", config)
    monkeypatch.setattr(trained_classifier, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    class ReadError(Exception):
        pass

    def resolve(config: Config) -> None:
        assert config.run.device == device
        raise ReadError

    monkeypatch.setattr(trained_classifier, "resolve", resolve)
    with pytest.raises(ReadError):
        TrainedClassifier(tmp_path / "run")


def test_a_network_is_built_only_if_the_weights_fit_it(data_dir, tmp_path, monkeypatch):
    """Settings from elsewhere could name one of gigabytes."""
    run, devices = train(quick(data_dir, tmp_path / "run", steps=1)).path, []

    def build(*arguments):
        devices.append(torch.empty(0).device.type)
        return build_model(*arguments)

    monkeypatch.setattr(trained_classifier, "build_model", build)
    TrainedClassifier(run)
    assert devices == ["meta", "cpu"]
    config = read_json(run / "config.json")
    config["model"]["model"] = "test_resnet"
    write_json(run / "config.json", config)
    with pytest.raises(UserError, match=r"best\.safetensors does not fit the model in"):
        TrainedClassifier(run)
    assert devices == ["meta", "cpu", "meta"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_classifier(tmp_path)
