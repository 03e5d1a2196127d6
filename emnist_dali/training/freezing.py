"""Weights of a pretrained model that training leaves as they are."""

import torch

from ..core.errors import UserError
from ..models.build import first_layers, heads


def freeze(net: torch.nn.Module, what: str) -> list[torch.nn.Parameter]:
    """Takes the gradients from `what`: `stem`, what takes the images, or `backbone`, all but the classifier.

    Returns the weights that had gradients and have none now. Raises UserError if the net does not say which layers
    these are, or if none is left to train.
    """
    layers = first_layers(net) if what == "stem" else heads(net)
    if not layers:
        name = "first_conv" if what == "stem" else "classifier"
        raise UserError(f"{type(net).__name__} has no pretrained_cfg with a {name}; set training.freeze none.")
    frozen = []
    for name, parameter in net.named_parameters():
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if parameter.requires_grad and inside == (what == "stem"):
            frozen.append(parameter.requires_grad_(False))
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(f"training.freeze {what} leaves nothing to train in {type(net).__name__}; set it none.")
    return frozen


def keep_statistics(net: torch.nn.Module) -> None:
    """Puts norms whose weights are frozen into evaluation: their running statistics stay as they are, too."""
    for module in net.modules():
        parameters = list(module.parameters(recurse=False))
        if hasattr(module, "running_mean") and parameters and not any(p.requires_grad for p in parameters):
            module.eval()
