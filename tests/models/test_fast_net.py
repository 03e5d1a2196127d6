import pytest
import torch

from emnist_dali.config import Model
from emnist_dali.core.errors import UserError
from emnist_dali.models.build import build_model, channels_last

# Parameters, the side of an image, and millions of multiply-adds for it.
SIZES = {
    "emnist_fast": (1_121_263, 28, 45.89),
    "emnist_fast_small": (284_175, 28, 11.55),
    "emnist_fast_tiny": (272_815, 24, 5.00),
    "emnist_fast_flat": (284_175, 24, 6.90),
    "emnist_fast_wide": (733_071, 24, 13.51),
    "emnist_fast_trio": (2_199_213, 24, 40.53),
    "emnist_fast_large_trio": (3_363_789, 28, 137.67),
}


def untrained(name: str, classes: int = 47) -> torch.nn.Module:
    return build_model(Model(model=name, pretrained=False), classes)


def conv_outputs(net: torch.nn.Module, images: torch.Tensor) -> list[tuple[torch.nn.Conv2d, torch.Tensor]]:
    seen = []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, _, out: seen.append((module, out)))
    net.eval()(images)
    return seen


@pytest.mark.parametrize("name", SIZES)
def test_size_and_cost_are_the_documented_ones(name):
    net = untrained(name)
    parameters, side, millions = SIZES[name]
    assert sum(p.numel() for p in net.parameters()) == parameters
    outputs = conv_outputs(net, torch.zeros(1, 1, side, side))
    multiplications = sum(conv.weight.numel() * out.shape[2] * out.shape[3] for conv, out in outputs)
    matrices = (layer.weight for layer in net.modules() if isinstance(layer, torch.nn.Linear))
    assert (multiplications + sum(matrix.numel() for matrix in matrices)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", SIZES)
def test_channels_are_multiples_of_16_and_stay_last(name):
    outputs = conv_outputs(untrained(name), channels_last(torch.randn(2, 1, 28, 28)))
    assert not any(conv.out_channels % 16 for conv, _ in outputs)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for _, out in outputs)


@pytest.mark.parametrize("name", SIZES)
def test_every_pixel_matters(name):
    """Including the last row and column where a side is odd."""
    images = torch.randn((1, 1, 28, 28), generator=torch.Generator().manual_seed(0), requires_grad=True)
    untrained(name).eval()(images).square().sum().backward()
    assert (images.grad != 0).all()


@pytest.mark.parametrize("name", ["emnist_fast_small", "emnist_fast_tiny", "emnist_fast_flat", "emnist_fast_trio"])
@pytest.mark.parametrize(("classes", "size"), [(10, 28), (62, 24), (47, 32), (47, 9)])
def test_one_logit_per_class_at_any_size(name, classes, size):
    assert untrained(name, classes).eval()(torch.zeros(3, 1, size, size)).shape == (3, classes)


def test_it_learns_in_a_few_steps():
    torch.manual_seed(0)
    net = untrained("emnist_fast_small", 4).train()
    images, labels = torch.randn(32, 1, 28, 28), torch.arange(32) % 4
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_there_are_no_pretrained_weights():
    with pytest.raises(UserError, match=r"model\.pretrained"):
        build_model(Model(model="emnist_fast"), 47)


def test_saved_weights_load_from_a_file(tmp_path):
    path = tmp_path / "weights.pth"
    saved = untrained("emnist_fast_small")
    torch.save(saved.state_dict(), path)
    loaded = build_model(Model(model="emnist_fast_small", weights=str(path)), 47)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())
