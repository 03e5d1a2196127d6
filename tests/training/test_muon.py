"""The stacked Muon against timm's, which updates one matrix after the other."""

import copy

import pytest
import timm.optim
import torch
from timm.optim import param_groups_weight_decay

from emnist_dali.training.muon import PADDING, Muon, _Stack, _stacked, newton_schulz, newton_schulz_of_gram


def make_model() -> torch.nn.Module:
    """Of every kind: a 1-channel stem, kernels, a depthwise one, tall and wide matrices, norms and biases."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(1, 16, 5),
        torch.nn.BatchNorm2d(16),
        torch.nn.Conv2d(16, 16, 3, groups=16),
        torch.nn.Conv2d(16, 32, 3, bias=False),
        torch.nn.Conv2d(32, 8, 1),
        torch.nn.Linear(8, 64),
        torch.nn.Linear(64, 12),
    ]
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def optimizers() -> tuple[Muon, timm.optim.Muon]:
    model = make_model()
    groups, others = (param_groups_weight_decay(m, 0.05) for m in (model, copy.deepcopy(model)))
    return Muon(groups, 0.02), timm.optim.Muon(others, lr=0.02, nesterov=True, fallback_lr_scale=0.2)


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def step(*several: torch.optim.Optimizer) -> None:
    """With the same random gradients for all."""
    for of_all in zip(*map(parameters, several), strict=True):
        gradient = torch.randn_like(of_all[0])
        for parameter in of_all:
            parameter.grad = gradient.clone()
    for optimizer in several:
        optimizer.step()


@pytest.mark.parametrize("padding", [0, PADDING])
def test_it_steps_as_timm_does(padding, monkeypatch):
    monkeypatch.setattr("emnist_dali.training.muon._padding", lambda device: padding)
    ours, theirs = optimizers()
    for _ in range(5):
        before = [parameter.clone() for parameter in parameters(theirs)]
        step(ours, theirs)
        for one, other, old in zip(parameters(ours), parameters(theirs), before, strict=True):
            # Newton-Schulz runs in bf16, which has 8 bits.
            assert (one - other).norm() < 0.02 * (other - old).norm()


def test_a_state_of_timm_is_resumed():
    ours, theirs = optimizers()
    step(theirs)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    with torch.no_grad():
        for one, other in zip(parameters(ours), parameters(theirs), strict=True):
            one.copy_(other)
    step(ours, theirs)
    for one, other in zip(parameters(ours), parameters(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4e-4)  # a tenth of an update: timm's is in bf16


def test_equal_shapes_share_a_stack_and_on_a_gpu_all_that_little_padding_allows(monkeypatch):
    kernels = [torch.empty(8, 4, 3, 3), torch.empty(36, 8), torch.empty(64, 64), torch.empty(8, 36)]
    assert sorted(map(len, _stacked(kernels))) == [1, 3]
    monkeypatch.setattr("emnist_dali.training.muon._padding", lambda device: PADDING)
    assert list(map(len, _stacked(kernels))) == [4]
    large = [torch.empty(2048, 2048), torch.empty(64, 64)]
    assert list(map(len, _stacked(large))) == [1, 1]


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (24, 40), (40, 24), (32, 16, 1, 1)])
def test_padding_and_neighbours_change_nothing(shape):
    torch.manual_seed(1)
    parameter = torch.randn(shape)
    if parameter.ndim == 4:
        parameter = parameter.contiguous(memory_format=torch.channels_last)
    larger = torch.randn(48, 200)
    alone = _Stack([parameter]).orthogonalized([parameter], 1.0, 1e-7)[0]
    _, beside = _Stack([larger, parameter]).orthogonalized([larger, parameter], 1.0, 1e-7)
    assert beside.stride() == parameter.stride()
    torch.testing.assert_close(beside, alone, rtol=0, atol=0.02 * alone.abs().max().item())
    singular = torch.linalg.svdvals(beside.flatten(1)) / (0.2 * max(shape[0], parameter[0].numel()) ** 0.5)
    assert 0.7 < singular.min() <= singular.max() < 1.3


def test_zeros_stay_zeros():
    assert not newton_schulz(torch.zeros(2, 4, 8, dtype=torch.bfloat16), 1e-7).any()
    assert not newton_schulz_of_gram(torch.zeros(2, 4, 8), 1e-7).any()


@pytest.mark.parametrize("rank", [2, 16])
def test_iterating_on_gram_matrices_gives_the_same(rank):
    """Also where the singular values differ by three orders of magnitude."""
    torch.manual_seed(2)
    matrices = torch.randn(3, 16, rank) @ torch.randn(3, rank, 40) + 1e-3 * torch.randn(3, 16, 40)
    expected = newton_schulz(matrices.double(), 1e-7).float()
    torch.testing.assert_close(newton_schulz_of_gram(matrices, 1e-7), expected, rtol=0, atol=1e-4)
