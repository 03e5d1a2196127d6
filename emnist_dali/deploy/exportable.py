"""A trained net that takes raw images: the whole preprocessing in torch operations that export."""

import torch
from torch import nn
from torch.nn import functional

from ..data.stats import Stats
from ..models.build import channels_last


class RawModel(nn.Module):
    """images (N, H, W) uint8 → probabilities (N, classes) float32: equalize, resize, normalize, net, softmax.

    `net` takes (N, 1, S, S) float32 with S = `image_size` and gives logits. It computes what `pipelines/fused.py` and
    the trainer do in float32, so that serving cannot differ from training.
    """

    def __init__(self, net: nn.Module, image_size: int, stats: Stats) -> None:
        super().__init__()
        self.net, self.image_size, self.stats = net, image_size, stats

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = (equalize(images) if self.stats.equalize else images).float()
        side = (self.image_size, self.image_size)
        resized = functional.interpolate(levels[:, None], side, mode="bilinear", align_corners=False, antialias=False)
        normalized = (resized / 255 - self.stats.mean) / self.stats.std
        return self.net(channels_last(normalized)).softmax(-1)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """(N, H, W) uint8 → the same, bit-exact to OpenCV's `equalizeHist`: in float32, halves rounded to even."""
    pixels = images.flatten(1).long()
    histogram = torch.zeros(images.shape[0], 256, dtype=torch.int32, device=images.device)
    histogram = histogram.scatter_add(1, pixels, torch.ones_like(pixels, dtype=torch.int32))
    darkest = pixels.amin(1, keepdim=True)
    background = histogram.gather(1, darkest)  # pixels of the darkest level, which becomes 0
    others = pixels.shape[1] - background
    # A tensor: torch makes a number divided by a tensor a product with its reciprocal, which is rounded twice.
    factor = torch.tensor(255.0) / others.clamp(min=1)
    levels = ((histogram.cumsum(1, dtype=torch.int32) - background).float() * factor).round()
    # An image of one grey level stays as it is.
    equalized = torch.where(others == 0, pixels, levels.gather(1, pixels).long())
    return equalized.to(torch.uint8).view_as(images)
