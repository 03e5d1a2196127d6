"""A batch in slices, one a core: the arithmetic of the whole, the statistics of each."""

import pytest
import torch
from torch import nn

from emnist_dali.data.shards import Shards
from emnist_dali.training import slices, trainer
from emnist_dali.training.slices import Slices, slices_of

from ..loaders import whole_training
from ..training_runs import small


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def loss(model, images, targets):
    return (model(images) - targets).square().mean()


@pytest.mark.parametrize("n", [8, 7])
def test_gradients_are_those_of_the_whole_batch(n):
    torch.manual_seed(0)
    model, images, targets = nn.Linear(5, 3), torch.randn(n, 5), torch.randn(n, 3)
    whole = loss(model, images, targets)
    whole.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    sliced = Slices(model, 2)
    for times in (1, 2):  # they add up, and replicas keep nothing
        assert sliced.backward(loss, images, targets) == pytest.approx(whole.item())
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, times * gradient)


def test_replicas_follow_the_weights():
    model, images = nn.Linear(5, 3), torch.randn(4, 5)
    sliced = Slices(model, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(2)
    assert sliced.backward(loss, images, torch.zeros(4, 3)) == pytest.approx(4)


def test_statistics_are_the_mean_of_the_slices():
    model = nn.BatchNorm1d(1, momentum=1.0)
    sliced = Slices(model, 2)
    images = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    for _ in range(2):
        sliced.backward(lambda model, images, _: model(images).sum(), images, images)
        assert (model.running_mean, model.running_var) == (6.5, 5)  # variances 2 and 8 of means 1 and 12


def test_a_batch_has_as_many_slices_as_there_are_threads_for_it():
    plain, draws = nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1))
    counts = {n: slices_of(plain, n) for n in (1, 128, 255, 256, 4096)}
    assert counts == {1: 1, 128: 1, 255: 1, 256: 2, 4096: 2}
    assert slices_of(draws, 4096) == 1
    draws[1].p = 0.0
    assert slices_of(draws, 4096) == 2


@pytest.mark.parametrize(("change", "sliced"), [({}, True), ({"compile": "on"}, False), ({"batch_size": 127}, False)])
def test_a_training_on_a_cpu_is_in_slices(change, sliced, data_dir, monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 64)
    training = make_training(data_dir, **{"batch_size": 128, **change})
    assert (training.trainer.slices > 1) == sliced


def make_training(data_dir, **options):
    return whole_training(small(data_dir, "unused", **options), Shards(data_dir / "demo" / "small", "train"))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_sliced_training_repeats_and_resumes_exactly(accumulation, data_dir, monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 64)
    options = {"batch_size": 128, "accumulation": accumulation, "epochs": 2}
    states = []
    for resumed in (False, True):
        training = make_training(data_dir, **options)
        training.trainer.warm_up()
        for epoch in range(2):
            training.trainer.begin(epoch)
            training.trainer.train_epoch(training.loader)
            if resumed and epoch == 0:
                training.trainer.begin(1)
                state = training.trainer.state()
                training.close()
                training = make_training(data_dir, **options)
                training.trainer.load(state)
        states.append(training.trainer.state())
        training.close()
        assert torch.get_num_threads() == 2
    for name in ("model", "ema"):
        for key, tensor in states[0][name].items():
            assert torch.equal(tensor, states[1][name][key]), key


def test_an_epoch_in_slices_is_nearly_one_in_whole_batches(data_dir, monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 64)
    losses = []
    for of_model in (slices_of, lambda *_: 1):
        monkeypatch.setattr(trainer, "slices_of", of_model)
        with make_training(data_dir, batch_size=128) as training:
            losses.append(training.trainer.train_epoch(training.loader)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
