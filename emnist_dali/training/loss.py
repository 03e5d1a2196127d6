"""Soft-target KL divergence, and two answers to imbalanced classes: weights and logit adjustment."""

from collections.abc import Sequence

import torch

from ..core.errors import UserError


def class_weights(counts: Sequence[int], classes: Sequence[str]) -> torch.Tensor:
    """(classes,) float32: inverse frequency rescaled to [1, 2]; equal counts give 1.

    Raises UserError if a class has no image.
    """
    _need_all(counts, classes, "class_weights")
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    low, high = inverse.min(), inverse.max()
    if high == low:
        return torch.ones(len(counts))
    return (1 + (inverse - low) / (high - low)).float()


def log_frequencies(counts: Sequence[int], classes: Sequence[str]) -> torch.Tensor:
    """(classes,) float32: the logarithm of each class's share of the training images.

    Added to the logits in training and left out afterwards, it makes a model that takes every class to be as frequent
    as the others (Menon et al. 2021, arXiv:2007.07314). Raises UserError if a class has no image.
    """
    _need_all(counts, classes, "logit_adjustment")
    shares = torch.tensor(counts, dtype=torch.float64)
    return (shares / shares.sum()).log().float()


def _need_all(counts: Sequence[int], classes: Sequence[str], setting: str) -> None:
    if 0 in counts:
        raise UserError(
            f"The training images hold no {classes[list(counts).index(0)]!r}, and training.{setting} needs some of "
            f"every class; train without training.{setting} or lower data.val_fraction."
        )


def kl_divergence(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the batch of Σ_c w_c t_c (log t_c − log p_c); logits and targets (N, C), weights (C,).

    Divided by the number of images, not by the sum of the weights, so that the losses of all ranks add up.
    """
    terms = torch.nn.functional.kl_div(logits.float().log_softmax(-1), targets, reduction="none")
    if weights is not None:
        terms = terms * weights
    return terms.sum() / len(logits)
