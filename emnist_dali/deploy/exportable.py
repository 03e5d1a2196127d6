"""A trained network with its preprocessing as torch operations, so that both are exported together."""

import torch
from torch import nn
from torch.nn import functional

from ..data.stats import Stats
from ..models.build import channels_last
from ..runs.calibration import UNCALIBRATED, Calibration


class ExportableModel(nn.Module):
    """images (N, H, W) uint8 → probabilities (N, classes) float32: equalize, resize, normalize, net, calibrate.

    `net` takes (N, 1, S, S) float32 with S = `image_size` and returns logits. The preprocessing computes in float32
    what `pipelines/fused.py` does, so that a deployed model sees what it was trained on.
    """

    def __init__(
        self, net: nn.Module, image_size: int, stats: Stats, calibration: Calibration = UNCALIBRATED
    ) -> None:
        super().__init__()
        self.net, self.image_size, self.stats, self.calibration = net, image_size, stats, calibration

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = (equalize(images) if self.stats.equalize else images).float()
        size = (self.image_size, self.image_size)
        resized = functional.interpolate(levels[:, None], size, mode="bilinear", align_corners=False, antialias=False)
        normalized = (resized / 255 - self.stats.mean) / self.stats.std
        return self.calibration(self.net(channels_last(normalized)))


def equalize(images: torch.Tensor) -> torch.Tensor:
    """(N, H, W) uint8 → the same, bit-exact to OpenCV's `equalizeHist`: in float32, halves rounded to even."""
    pixels = images.flatten(1).long()
    histogram = torch.zeros(images.shape[0], 256, dtype=torch.int32, device=images.device)
    histogram = histogram.scatter_add(1, pixels, torch.ones_like(pixels, dtype=torch.int32))
    darkest = pixels.amin(1, keepdim=True)
    background = histogram.gather(1, darkest)  # number of pixels of the darkest level, which becomes 0
    others = pixels.shape[1] - background
    # A tensor, not a number: torch multiplies a number by the reciprocal, which rounds twice.
    factor = torch.tensor(255.0) / others.clamp(min=1)
    levels = ((histogram.cumsum(1, dtype=torch.int32) - background).float() * factor).round()
    # Images of a single level stay unchanged.
    equalized = torch.where(others == 0, pixels, levels.gather(1, pixels).long())
    return equalized.to(torch.uint8).view_as(images)
