"""timm models with a 1-channel stem."""

from difflib import get_close_matches

import torch

from ..config import Model
from ..core.errors import UserError
from ..core.files import is_uncompressed_zip
from ..core.machine import reachable
from ..weights import FILE, located


def build_model(model: Model, classes: int) -> torch.nn.Module:
    """A timm model from images (N, 1, S, S) to logits (N, classes), with channels-last weights.

    Pretrained RGB weights of the stem are summed over the channels. Raises UserError if timm has no such model, or if
    its weights cannot be loaded.
    """
    import timm

    from . import fast_net  # noqa: F401  (registers its models)

    if not timm.is_model(model.model):
        similar = get_close_matches(model.model, timm.list_models())
        hint = f", but {', '.join(similar)}" if similar else ""
        raise UserError(f"timm has no model {model.model!r}{hint}; set model.model to one of timm.list_models().")
    if not model.pretrained:
        try:
            net = timm.create_model(model.model, in_chans=1, num_classes=classes)
        except Exception as error:  # timm's models may raise anything
            raise UserError(
                f"{model.model} cannot be built for 1-channel images ({_reason(error)}); choose another model.model."
            ) from error
    elif model.weights:
        net = _from_file(model, classes)
    else:
        net = _from_hub(model, classes)
    if model.stem == "new" or model.stem_stride:
        stems = [net.get_submodule(name) for name in first_layers(net)]
        if not stems or not all(isinstance(stem, torch.nn.Conv2d) for stem in stems):
            raise UserError(
                f"{model.model} does not start with a convolution; leave model.stem and model.stem_stride unset."
            )
        for stem in stems:
            if model.stem == "new":
                stem.reset_parameters()
            if model.stem_stride:
                stem.stride = (model.stem_stride, model.stem_stride)
    return net.to(memory_format=torch.channels_last)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """A channels-last view of contiguous images (N, 1, S, S).

    With one channel the bytes are the same, but torch chooses kernels by strides: EfficientNet's stem then stays
    channels-last (2,500 instead of 2,000 img/s with `test_efficientnet` at 32×32 on 2 cores).
    """
    n, _, height, width = images.shape
    return images.reshape(n, height, width, 1).permute(0, 3, 1, 2)


def first_layers(net: torch.nn.Module) -> tuple[str, ...]:
    """The names of the layers that take the images, as timm's config has them; of an ensemble one a member."""
    names = net.pretrained_cfg.get("first_conv") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _from_file(model: Model, classes: int) -> torch.nn.Module:
    import timm

    path = located(model.weights, FILE)
    if not path.is_file():
        raise UserError(f"{path} is not a file; set model.weights to a file with weights of {model.model}.")
    try:
        is_uncompressed_zip(path)  # only for its error: legacy pickles are accepted too
        # Only through the overlay does timm fold the RGB stem of a local file and drop its classifier.
        return timm.create_model(
            model.model,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path)},
            in_chans=1,
            num_classes=classes,
        )
    except Exception as error:
        raise UserError(
            f"{path} does not hold weights of {model.model} ({_reason(error)}); set model.weights to another file."
        ) from error


def _from_hub(model: Model, classes: int) -> torch.nn.Module:
    import timm
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    # Without a network the hub's client retries for 47 s; in offline mode it checks its cache and fails at once.
    constants.HF_HUB_OFFLINE = offline or not reachable(constants.ENDPOINT)
    try:
        return timm.create_model(model.model, pretrained=True, in_chans=1, num_classes=classes)
    except Exception as error:
        raise UserError(
            f"The pretrained weights of {model.model} could not be downloaded from {constants.ENDPOINT} "
            f"({_reason(error)}); set model.weights to a local file, or turn off model.pretrained."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}".splitlines()[0].strip()
