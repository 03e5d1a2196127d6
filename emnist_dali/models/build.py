"""timm models with a 1-channel stem."""

from difflib import get_close_matches
from pathlib import Path

import torch

from ..config import Model
from ..core.errors import UserError
from ..core.files import is_uncompressed_zip
from ..core.machine import reachable


def build_model(model: Model, classes: int) -> torch.nn.Module:
    """A timm model for images (N, 1, S, S) and `classes` logits, channels-last.

    Pretrained RGB weights of the stem are summed to one channel. Raises UserError where the name is unknown or
    the weights cannot be had.
    """
    import timm

    from . import fast_net  # noqa: F401  (registers its models)

    if not timm.is_model(model.model):
        near = get_close_matches(model.model, timm.list_models())
        raise UserError(
            f"timm has no model {model.model!r}{', but ' + ', '.join(near) if near else ''}; "
            "see timm.list_models() for --model."
        )
    if not model.pretrained:
        try:
            net = timm.create_model(model.model, in_chans=1, num_classes=classes)
        except Exception as error:  # a model of timm's may raise anything
            raise UserError(
                f"{model.model} cannot be made for images of one channel ({_reason(error)}); take another --model."
            ) from error
    elif model.weights:
        net = _from_file(model, classes)
    else:
        net = _from_hub(model, classes)
    if model.stem == "new" or model.stem_stride:
        stem = _stem(net)
        if not isinstance(stem, torch.nn.Conv2d):
            raise UserError(f"{model.model} has no convolution as its stem; train it with the stem that it has.")
        if model.stem == "new":
            stem.reset_parameters()
        if model.stem_stride:
            stem.stride = (model.stem_stride, model.stem_stride)
    return net.to(memory_format=torch.channels_last)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """images (N, 1, S, S), contiguous, as a channels-last view.

    With one channel the bytes are the same, but torch chooses its kernels by the strides: EfficientNet's stem then
    stays channels-last (2,500 against 2,000 img/s with `test_efficientnet` at 32×32 on 2 cores).
    """
    n, _, height, width = images.shape
    return images.reshape(n, height, width, 1).permute(0, 3, 1, 2)


def _stem(net: torch.nn.Module) -> torch.nn.Module | None:
    """The first convolution, where timm says which that is."""
    names = net.pretrained_cfg.get("first_conv") or ()
    names = (names,) if isinstance(names, str) else names
    return net.get_submodule(names[0]) if names else None


def _from_file(model: Model, classes: int) -> torch.nn.Module:
    import timm

    path = Path(model.weights)
    if not path.is_file():
        raise UserError(f"{path} is no file; name one of {model.model}'s weights with --weights.")
    try:
        is_uncompressed_zip(path)  # for its error; old pickles are taken too
        # Only by way of the overlay does timm fold a local file's RGB stem and drop its classifier.
        return timm.create_model(
            model.model,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path)},
            in_chans=1,
            num_classes=classes,
        )
    except Exception as error:
        raise UserError(
            f"{path} does not hold weights of {model.model} ({_reason(error)}); name another file."
        ) from error


def _from_hub(model: Model, classes: int) -> torch.nn.Module:
    import timm
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    # Without network the hub's client retries for 47 s; offline it looks into its cache and fails at once.
    constants.HF_HUB_OFFLINE = offline or not reachable(constants.ENDPOINT)
    try:
        return timm.create_model(model.model, pretrained=True, in_chans=1, num_classes=classes)
    except Exception as error:
        raise UserError(
            f"The pretrained weights of {model.model} could not be fetched from {constants.ENDPOINT} "
            f"({_reason(error)}); name a local file with --weights FILE or train with --no-pretrained."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}".splitlines()[0].strip()
