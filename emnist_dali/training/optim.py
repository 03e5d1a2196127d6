"""Optimizers and learning-rate schedules."""

from math import ceil, cos, pi

import torch
from timm.optim import param_groups_weight_decay

from ..config import Training


def build_optimizer(model: torch.nn.Module, training: Training) -> torch.optim.Optimizer:
    """Applies weight decay to matrices and kernels only, as timm does: not to norms and biases.

    Every update but Muon's is fused or foreach: a few calls for all tensors, and the host reads none of them.
    """
    groups = param_groups_weight_decay(model, training.weight_decay)
    match training.optimizer:
        case "lion":
            # The foreach update is bit-identical to lion-pytorch's plain one and 2.5 times as fast on a CPU.
            from lion_pytorch.foreach import Lion

            return Lion(groups, lr=training.lr)
        case "adamw":
            return torch.optim.AdamW(groups, lr=training.lr, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=training.lr, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=training.lr, momentum=0.9, nesterov=True, fused=True)
        case "muon":
            # timm's: Muon for hidden kernels and matrices; NAdamW for the 1-channel stem, norms and biases, at a
            # fifth of the rate, which is by how much a step of Muon changes a weight.
            from timm.optim import Muon

            return Muon(groups, lr=training.lr, nesterov=True, fallback_lr_scale=0.2)
        case unknown:
            raise ValueError(f"unknown optimizer {unknown!r}")


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` (from 0): a pure function, so a resumed run needs no state."""
    if training.schedule == "cosine":
        warmup, total = round(training.warmup * steps_per_epoch), training.epochs * steps_per_epoch
        if step < warmup:
            return training.lr * (step + 1) / warmup
        return _cosine(training, (step - warmup) / max(total - warmup, 1))
    # `restarts`: one learning rate for the whole epoch (Loshchilov & Hutter 2017, arXiv:1608.03983, T_mult = 1).
    epoch, warmup = step // steps_per_epoch, ceil(training.warmup)
    if epoch < warmup:
        return training.lr * (epoch + 1) / warmup
    return _cosine(training, (epoch - warmup) % training.restart_every / training.restart_every)


def _cosine(training: Training, done: float) -> float:
    return training.min_lr + (training.lr - training.min_lr) * (1 + cos(pi * min(done, 1))) / 2
