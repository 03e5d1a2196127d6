"""Several networks as one: the mean of their probabilities."""

from collections.abc import Sequence
from math import log
from typing import Any

import torch
from torch import nn


class Ensemble(nn.Module):
    """(N, in_chans, S, S) → (N, num_classes) logits: the logarithms of the members' mean probabilities.

    In training each of the n members takes its share of the batch, and the logits are those of its member. An epoch
    costs what training one member costs, and n epochs train every member as long as one epoch trains a network alone;
    images are shared out anew in every epoch, so that all members see all images. Batch normalization needs two
    images of a training batch for each member.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_classes = members[0].num_classes

    def group_matcher(self, coarse: bool = False) -> dict[str, list[tuple[str, Any]]]:
        """timm's description of the layers: those of the members side by side."""
        of_member = self.members[0].group_matcher(coarse)
        return {
            kind: [(pattern.replace("^", r"^members\.\d+\."), place) for pattern, place in patterns]
            for kind, patterns in of_member.items()
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            shares = images.tensor_split(len(self.members))
            return torch.cat([member(share) for member, share in zip(self.members, shares, strict=True)])
        logits = torch.stack([member(images) for member in self.members])
        return logits.float().log_softmax(-1).logsumexp(0) - log(len(self.members))
