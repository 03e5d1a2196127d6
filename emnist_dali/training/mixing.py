"""MixUp and CutMix of whole batches, on their device.

MixUp: Zhang et al. 2018, arXiv:1710.09412. CutMix: Yun et al. 2019, arXiv:1905.04899. The result is that of
timm's `Mixup` in batch mode: an image's partner is the one at its place in the reversed batch.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..config import Mixing


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: `weight` is the share of an image's own label, in 0 … 1.

    `box` (top, bottom, left, right) is taken from the partner (CutMix); None blends the whole image (MixUp).
    """

    weight: float = 1.0
    box: tuple[int, int, int, int] | None = None


def draw(mixing: Mixing, size: int, generator: np.random.Generator) -> Mix:
    """Draws one batch's mix of (size, size) images; on the host, which would have to wait for the device."""
    if generator.random() >= mixing.probability:
        return Mix()
    if generator.random() >= mixing.switch:
        return Mix(float(generator.beta(mixing.mixup_alpha, mixing.mixup_alpha)))
    weight = generator.beta(mixing.cutmix_alpha, mixing.cutmix_alpha)
    side = int(size * np.sqrt(1 - weight))
    row, column = (generator.integers(size, size=2) - side // 2).tolist()
    top, bottom = max(row, 0), min(row + side, size)
    left, right = max(column, 0), min(column + side, size)
    # The box is clipped at the border: the labels follow the area that is actually replaced.
    return Mix(1 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right))


def mix(
    images: torch.Tensor, labels: torch.Tensor, how: Mix, classes: int, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """images (N, 1, S, S), labels (N,) → mixed images and soft targets (N, classes) float32.

    Works for any N, does not synchronize with the device, and its shapes do not depend on `how`.
    """
    floor = label_smoothing / classes
    targets = torch.full((len(labels), classes), floor, device=images.device)
    targets.scatter_(1, labels[:, None], 1 - label_smoothing + floor)
    if how.weight == 1:
        return images, targets
    targets = targets.flip(0).lerp(targets, how.weight)
    partners = images.flip(0)
    if how.box is None:
        return partners.lerp(images, how.weight), targets
    top, bottom, left, right = how.box
    place = torch.arange(images.shape[-1], device=images.device)
    inside = ((place >= top) & (place < bottom))[:, None] & ((place >= left) & (place < right))
    return torch.where(inside, partners, images), targets
