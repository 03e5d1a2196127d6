"""Weights of a pretrained model that training leaves as they are."""

import torch

from ..core.errors import UserError
from ..models.build import first_layers, heads


def freeze(net: torch.nn.Module, what: str) -> list[torch.nn.Parameter]:
    """Takes the gradients from `what`: `stem`, what takes the images, or `backbone`, all but the classifier.

    Returns the weights that had gradients and have none now. Raises UserError if the net does not say which layers
    these are, or if none is left to train.
    """
    layers = _layers(net, what)
    frozen = [
        parameter.requires_grad_(False)
        for name, parameter in net.named_parameters()
        if parameter.requires_grad and _is_frozen(name, layers, what)
    ]
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(f"training.freeze {what} leaves nothing to train in {type(net).__name__}; set it none.")
    return frozen


def keep_statistics(net: torch.nn.Module, what: str) -> None:
    """Puts the norms of the frozen part, `what`, into evaluation mode, which keeps their running statistics, too."""
    layers = _layers(net, what)
    for name, module in net.named_modules():
        if hasattr(module, "running_mean") and _is_frozen(f"{name}.", layers, what):
            module.eval()


def _layers(net: torch.nn.Module, what: str) -> list[str]:
    """The names of the stem, or of the classifiers."""
    layers = first_layers(net) if what == "stem" else heads(net)
    if not layers:
        name = "first_conv" if what == "stem" else "classifier"
        raise UserError(f"{type(net).__name__} has no pretrained_cfg with a {name}; set training.freeze none.")
    return layers


def _is_frozen(name: str, layers: list[str], what: str) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers) == (what == "stem")
