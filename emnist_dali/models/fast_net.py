"""Small convolutional networks, registered with timm: `emnist_fast` and its variants.

Modelled on the networks that hold CIFAR-10's speed records (KellerJordan/cifar10-airbench): plain dense convolutions,
pooled before they are normalized.
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional

from .ensemble import Ensemble


def _layers(coarse: bool = False) -> dict[str, list[tuple[str, Any]]]:
    """timm's description of the layers, from the stem to the head, for layer-wise rates."""
    return {"stem": [("^stem", None)], "groups": [(r"^groups\.(\d+)", None), ("^hidden", (99,))]}


class FastNet(nn.Module):
    """(N, in_chans, S, S) → (N, num_classes) logits.

    A 5×5 stem of stride 2 with `stem` channels; for each of `widths` two 3×3 convolutions, the first of which halves
    the side; global average pooling; a linear head. Widths are multiples of 16, for AVX-512 and tensor cores.
    """

    def __init__(self, *, stem: int, widths: tuple[int, ...], num_classes: int = 47, in_chans: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Validation accuracy of the small network on Balanced after 3 epochs: this stem 90.7 %; one of stride 1, at
        # three quarters of the speed, 90.6 %; this one with weights that whiten patches of the images 90.5 %.
        self.stem = _stem(in_chans, stem)
        self.groups = nn.Sequential(*map(_group, (stem, *widths), widths, widths))
        self.head = nn.Linear(widths[-1], num_classes)

    group_matcher = staticmethod(_layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.groups(self.stem(images)).mean((2, 3)))


class FlatNet(nn.Module):
    """(N, in_chans, S, S) → (N, num_classes) logits; S is 24, or near it, and at least 9.

    A FastNet's stem, three 3×3 convolutions of `widths`, the first of which halves the side, and a linear layer of
    `hidden` outputs on all positions in place of a fourth and the average: oneDNN is slow at the gradients of the
    weights of convolutions on few positions, 5.2 ms for 256 images on a core of a Xeon where a matrix product takes
    0.3 ms. The third convolution has no padding and leaves 4×4 positions; with `halved` it is padded and pooled, and
    leaves 3×3.
    """

    def __init__(
        self,
        *,
        stem: int,
        widths: tuple[int, int, int],
        hidden: int,
        halved: bool = False,
        num_classes: int = 47,
        in_chans: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = _stem(in_chans, stem)
        # Averages cost no accuracy here (89.86 % in 4 epochs, as maxima) and save 2.4 of 42.4 ms a step.
        pool = nn.AvgPool2d
        first, second, third = widths
        group = _group(stem, first, second, pool)
        last = _halving(second, third, pool) if halved else _convolution(second, third, padding=0)
        self.groups = nn.Sequential(group, nn.Sequential(*last))
        self.side = 3 if halved else 4
        self.pool = nn.AdaptiveAvgPool2d(self.side)
        self.hidden = nn.Sequential(
            nn.Linear(self.side**2 * third, hidden, bias=False), _BatchNorm(hidden), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(hidden, num_classes)

    group_matcher = staticmethod(_layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        positions = self.groups(self.stem(images))
        if positions.shape[2:] != (self.side, self.side):
            positions = self.pool(positions)
        return self.head(self.hidden(positions.permute(0, 2, 3, 1).flatten(1)))  # as they lie in memory


class _BatchNorm(nn.BatchNorm2d):
    """Does not count its batches: a kernel a layer, for a number that only cumulative averages need."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        return functional.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


def _stem(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2, padding=2, bias=False), _BatchNorm(width), nn.ReLU(inplace=True)
    )


def _group(channels: int, first: int, second: int, pool: type[nn.Module] = nn.MaxPool2d) -> nn.Sequential:
    # Made in this order, so that a seed gives the weights that it always gave.
    last = _convolution(first, second, padding=1)
    return nn.Sequential(*_halving(channels, first, pool), *last)


def _halving(channels: int, width: int, pool: type[nn.Module]) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        pool(2, ceil_mode=True),  # 7×7 becomes 4×4, so no border is dropped
        _BatchNorm(width),
        nn.ReLU(inplace=True),
    ]


def _convolution(channels: int, width: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=padding, bias=False), _BatchNorm(width), nn.ReLU(inplace=True)]


_UNTRAINED = {"input_size": (1, 28, 28), "num_classes": 47, "first_conv": "stem.0", "classifier": "head"}
_NAMES = ("emnist_fast", "emnist_fast_small", "emnist_fast_tiny", "emnist_fast_wide", "emnist_fast_flat")
_MEMBERS = 3
_TRIO = _UNTRAINED | {
    layer: tuple(f"members.{i}.{_UNTRAINED[layer]}" for i in range(_MEMBERS))
    for layer in ("first_conv", "classifier")
}
_TRIOS = ("emnist_fast_trio", "emnist_fast_large_trio")
default_cfgs = generate_default_cfgs(dict.fromkeys(_NAMES, _UNTRAINED) | dict.fromkeys(_TRIOS, _TRIO))
_LARGE = {"stem": 64, "widths": (128, 256)}
_WIDE = {"stem": 32, "widths": (96, 96, 192), "hidden": 256, "halved": True}


def _trio(**options: Any) -> Ensemble:
    return Ensemble([FlatNet(**_WIDE, **options) for _ in range(_MEMBERS)])


def _large_trio(**options: Any) -> Ensemble:
    return Ensemble([FastNet(**_LARGE, **options) for _ in range(_MEMBERS)])


@register_model
def emnist_fast(pretrained: bool = False, **options: Any) -> FastNet:
    """For a GPU: 1.1 M parameters, 46 M multiply-adds per 28×28 image."""
    return build_model_with_cfg(FastNet, "emnist_fast", pretrained, **_LARGE, **options)


@register_model
def emnist_fast_small(pretrained: bool = False, **options: Any) -> FastNet:
    """`cpu`'s net before `emnist_fast_wide`: 0.28 M parameters, 12 M multiply-adds per 28×28 image."""
    return build_model_with_cfg(FastNet, "emnist_fast_small", pretrained, stem=32, widths=(64, 128), **options)


@register_model
def emnist_fast_tiny(pretrained: bool = False, **options: Any) -> FlatNet:
    """For a CPU and the shortest time: 0.27 M parameters, 5 M multiply-adds per 24×24 image."""
    sizes = {"stem": 32, "widths": (64, 64, 80), "hidden": 128}
    return build_model_with_cfg(FlatNet, "emnist_fast_tiny", pretrained, **sizes, **options)


@register_model
def emnist_fast_wide(pretrained: bool = False, **options: Any) -> FlatNet:
    """For a CPU and minutes: 0.73 M parameters, 14 M multiply-adds per 24×24 image."""
    return build_model_with_cfg(FlatNet, "emnist_fast_wide", pretrained, **_WIDE, **options)


@register_model
def emnist_fast_trio(pretrained: bool = False, **options: Any) -> Ensemble:
    """Three `emnist_fast_wide`: 2.2 M parameters, 41 M multiply-adds per 24×24 image, a third of them in training."""
    return build_model_with_cfg(_trio, "emnist_fast_trio", pretrained, **options)


@register_model
def emnist_fast_large_trio(pretrained: bool = False, **options: Any) -> Ensemble:
    """Three `emnist_fast`: 3.4 M parameters, 138 M multiply-adds per 28×28 image, a third of them in training."""
    return build_model_with_cfg(_large_trio, "emnist_fast_large_trio", pretrained, **options)


@register_model
def emnist_fast_flat(pretrained: bool = False, **options: Any) -> FlatNet:
    """For a CPU and a minute: 0.28 M parameters, 7 M multiply-adds per 24×24 image."""
    sizes = {"stem": 32, "widths": (64, 64, 128), "hidden": 128, "halved": True}
    return build_model_with_cfg(FlatNet, "emnist_fast_flat", pretrained, **sizes, **options)
