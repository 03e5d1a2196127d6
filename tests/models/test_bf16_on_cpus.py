"""Depthwise convolutions whose gradient oneDNN gets wrong are refused, and those around them are right."""

import pytest
import torch

from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import has_native_bf16
from emnist_dali.models.bf16_on_cpus import gradients_checked
from emnist_dali.training.session import train

from ..training_runs import quick


def layer(kernel: int, stride: int, dtype: torch.dtype) -> torch.nn.Conv2d:
    torch.manual_seed(0)
    return torch.nn.Conv2d(16, 16, kernel, stride, kernel // 2, groups=16, bias=False).to(
        dtype, memory_format=torch.channels_last
    )


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_what_is_not_refused_has_the_right_gradient(side, stride, kernel):
    images = torch.randn(64, 16, side, side).to(torch.bfloat16, memory_format=torch.channels_last)
    net = layer(kernel, stride, torch.bfloat16)
    if side < stride:
        with pytest.raises(ValueError, match=rf"of stride {stride} on {side}×{side} pixels"), gradients_checked(net):
            net(images)
        return
    exact = layer(kernel, stride, torch.float64)
    with gradients_checked(net):
        given = torch.randn_like(net(images))
    for network in (net, exact):
        network(images.to(network.weight.dtype)).backward(given.to(network.weight.dtype))
    # Without bfloat16 instructions sums are rounded more often: by up to 0.12 standard deviations on Zen 3.
    error = (0.02 if has_native_bf16() else 0.2) * exact.weight.grad.std()
    assert torch.allclose(net.weight.grad.double(), exact.weight.grad, rtol=0.02, atol=error)


def test_a_training_of_such_a_net_is_refused_in_bfloat16_only(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"on images of 16×16 \(in bfloat16 on a CPU .* unless run\.amp is off\)"):
        train(quick(data_dir, tmp_path / "run", amp="bf16"))
    assert not (tmp_path / "run").exists()
    train(quick(data_dir, tmp_path / "larger", amp="bf16", image_size=32, steps=1), test=False)
