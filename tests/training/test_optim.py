import copy
from itertools import pairwise
from math import cos, pi

import pytest
import torch
from lion_pytorch import Lion

from emnist_dali.config import Training
from emnist_dali.recipes import published
from emnist_dali.training.optim import build_optimizer, learning_rate


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 3),
        torch.nn.LayerNorm(3),
    )


IMAGES = torch.randn((12, 1, 8, 8), generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 3


def descend(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(IMAGES), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "lr"), [("lion", 1e-3), ("adamw", 1e-2), ("adam", 1e-2), ("sgd", 1e-2)])
def test_every_optimizer_lowers_the_loss(name, lr):
    model = small_model()
    losses = descend(model, build_optimizer(model, Training(optimizer=name, lr=lr)), 20)
    assert losses[-1] < 0.7 * losses[0]


def test_lion_is_the_plain_lion_bit_for_bit():
    model = small_model()
    plain_model = copy.deepcopy(model)
    optimizer = build_optimizer(model, Training(optimizer="lion", lr=1e-3, weight_decay=0.1))
    decayed, others = [], []
    for parameter in plain_model.parameters():
        (decayed if parameter.ndim > 1 else others).append(parameter)
    plain = Lion([{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.1}], lr=1e-3)
    assert descend(model, optimizer, 8) == descend(plain_model, plain, 8)
    for ours, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_momentum_is_zero_until_the_first_step_of_sgd():
    """Where fp16's scaler skips that step, torch's fused update would leave uninitialized memory."""
    model = small_model()
    plain_model = copy.deepcopy(model)
    optimizer = build_optimizer(model, Training(optimizer="sgd", lr=1e-2, weight_decay=0.0))
    momenta = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert not any(momentum.any() for momentum in momenta)
    plain = torch.optim.SGD(plain_model.parameters(), lr=1e-2, momentum=0.9, nesterov=True, fused=True)
    assert descend(model, optimizer, 4) == descend(plain_model, plain, 4)
    assert optimizer.state_dict()["state"].keys() == set(range(8))


@pytest.mark.parametrize("name", ["lion", "adamw", "adam", "sgd", "muon"])
def test_norms_and_biases_do_not_decay(name):
    model = small_model()
    optimizer = build_optimizer(model, Training(optimizer=name, lr=0.1, weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name_: decay[id(p)] for name_, p in model.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
        "4.weight": 0.5,
        "4.bias": 0,
        "5.weight": 0,
        "5.bias": 0,
    }
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    before = {name_: p.detach().clone() for name_, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name_, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name_]) == (decay[id(parameter)] == 0), name_


def test_the_config_sets_muons_momentum():
    optimizer = build_optimizer(torch.nn.Linear(8, 8), Training(optimizer="muon", momentum=0.85))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.85}


def test_muon_steps_as_far_in_every_direction_and_everywhere():
    """A hidden kernel's step has no weak directions; NAdamW takes the 1-channel stem, at the same rate a weight."""
    torch.manual_seed(0)
    stem, hidden = torch.nn.Conv2d(1, 16, 5, bias=False), torch.nn.Conv2d(16, 32, 3, bias=False)
    optimizer = build_optimizer(torch.nn.Sequential(stem, hidden), Training(optimizer="muon", lr=0.1, weight_decay=0))
    before = [stem.weight.detach().clone(), hidden.weight.detach().clone()]
    stem.weight.grad = torch.randn_like(stem.weight)
    strength = torch.logspace(0, -2, 32).reshape(-1, 1, 1, 1)
    hidden.weight.grad = strength * torch.randn_like(hidden.weight)
    optimizer.step()
    of_stem, of_hidden = (layer.weight.detach() - old for layer, old in zip((stem, hidden), before, strict=True))
    assert of_hidden.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.2)
    # By its momentum NAdamW's first step is 1.9 times its rate.
    torch.testing.assert_close(of_stem.abs(), torch.full_like(of_stem, 1.9 * 0.2 * 0.1), rtol=1e-3, atol=0)
    values = torch.linalg.svdvals(of_hidden.flatten(1))
    assert values.max() / values.min() < 2
    given = torch.linalg.svdvals(hidden.weight.grad.flatten(1))
    assert given.max() / given.min() > 50


def rates(training: Training, steps_per_epoch: int, epochs: int | None = None) -> list[float]:
    epochs = training.epochs if epochs is None else epochs
    return [learning_rate(training, step, steps_per_epoch) for step in range(epochs * steps_per_epoch)]


def test_cosine_rises_linearly_then_falls_to_the_end():
    training = Training(epochs=10, lr=0.5, schedule="cosine", warmup=1.5, min_lr=0.01)
    lrs = rates(training, 20)
    assert lrs[:30] == pytest.approx([0.5 * (step + 1) / 30 for step in range(30)])
    assert lrs[30] == 0.5  # the peak is met
    after = lrs[30:]
    assert all(a > b for a, b in pairwise(after))
    assert after == pytest.approx([0.01 + 0.49 * (1 + cos(pi * i / 170)) / 2 for i in range(170)])
    assert 0.01 < lrs[-1] < 0.01 + 0.49 * 1e-3
    assert learning_rate(training, 10**6, 20) == pytest.approx(0.01)


@pytest.mark.parametrize("epochs", [1, 3])
def test_cosine_without_warm_up_begins_at_the_peak(epochs):
    lrs = rates(Training(epochs=epochs, lr=0.5, schedule="cosine"), 7)
    assert lrs[0] == 0.5
    assert lrs == sorted(lrs, reverse=True)


RESTARTS = Training(epochs=20, lr=0.5, schedule="restarts", warmup=5, restart_every=8, min_lr=0.001)


def test_restarts_keep_one_rate_an_epoch():
    lrs = rates(RESTARTS, 6)
    assert all(len(set(lrs[start : start + 6])) == 1 for start in range(0, len(lrs), 6))


def test_restarts_warm_up_for_five_epochs_and_restart_every_eight():
    lrs = rates(RESTARTS, 1, epochs=30)
    assert lrs[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert [epoch for epoch, lr in enumerate(lrs) if lr == 0.5] == [4, 5, 13, 21, 29]
    for start in (5, 13, 21):
        period = lrs[start : start + 8]
        assert period == sorted(period, reverse=True)
        assert period == lrs[5:13]
        assert min(period) > RESTARTS.min_lr


@pytest.mark.parametrize(("split", "last", "share"), [("balanced", 19, 0.146), ("byclass", 14, 0.962)])
def test_the_seed_recipe_ends_where_the_publication_did(split, last, share):
    training = published(split).training
    assert last == training.epochs - 1
    final = learning_rate(training, training.epochs * 100 - 1, 100)
    assert final / training.lr == pytest.approx(share, abs=0.006)
    assert (final - training.min_lr) / (training.lr - training.min_lr) == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize("schedule", ["cosine", "restarts"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 1.0, 2.5, 9.0])
def test_no_rate_is_above_the_peak_or_zero(schedule, warmup):
    """Also for a warm-up of a part of an epoch, as `--recipe cpu --schedule restarts` has it."""
    lrs = rates(Training(epochs=6, lr=0.5, schedule=schedule, warmup=warmup), 10)
    assert 0 < min(lrs) <= max(lrs) <= 0.5
