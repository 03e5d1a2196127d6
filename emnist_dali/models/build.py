"""timm models with a 1-channel stem, and networks of the user's own."""

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from ..config import Model
from ..core.errors import UserError
from ..core.files import is_uncompressed_zip
from ..core.machine import reachable
from ..weights import FILE, FOLDER, located
from .import_path import factory, is_import_path


def build_model(model: Model, classes: int, image_size: int | None = None) -> torch.nn.Module:
    """A network from images (N, 1, S, S) to logits (N, classes), with channels-last weights.

    timm's of that name, or the user's own (`import_path`). Those that are made for one size get `image_size`, S.
    Pretrained RGB weights of the stem are summed over the channels. Raises UserError if there is no such model, if it
    cannot be made for images of this size, or if its weights cannot be loaded.
    """
    net = _own(model, classes, image_size) if is_import_path(model.model) else _of_timm(model, classes, image_size)
    _check_patches(net, model.model, image_size)
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
    if model.head == "new":
        if not heads(net):
            raise UserError(f"{model.model} does not name its classifier; leave model.head unset.")
        for name in heads(net):
            _reset(net.get_submodule(name), f"{name} of {model.model}")
    return net.to(memory_format=torch.channels_last)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """A channels-last view of contiguous images (N, 1, S, S).

    With one channel the bytes are the same, but torch chooses kernels by strides: EfficientNet's stem then stays
    channels-last (2,500 instead of 2,000 img/s with `test_efficientnet` at 32×32 on 2 cores).
    """
    n, _, height, width = images.shape
    return images.reshape(n, height, width, 1).permute(0, 3, 1, 2)


def first_layers(net: torch.nn.Module) -> tuple[str, ...]:
    """The names of the layers that take the images, as timm's config has them; of an ensemble one a member.

    Raises UserError if one of them is no layer of the net, or has no weights.
    """
    return _layers(net, "first_conv")


def heads(net: torch.nn.Module) -> tuple[str, ...]:
    """The names of the layers that give the logits, likewise."""
    return _layers(net, "classifier")


def _layers(net: torch.nn.Module, key: str) -> tuple[str, ...]:
    names = _names((getattr(net, "pretrained_cfg", None) or {}).get(key))
    layers = {name: layer for name, layer in net.named_modules() if name}
    for name in names:
        if name not in layers or not any(True for _ in layers[name].parameters()):
            raise UserError(
                f"The pretrained_cfg of {type(net).__name__} names {name!a:.80} as its {key}, and no layer of that "
                "name has weights; correct it there."
            )
    return names


def _names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _reset(head: torch.nn.Module, name: str) -> None:
    """Gives every layer of a classifier new random weights."""
    layers = [layer for layer in head.modules() if [*layer.parameters(recurse=False)]]
    for layer in layers:
        if not hasattr(layer, "reset_parameters"):
            raise UserError(f"{name} has a {type(layer).__name__} without reset_parameters; leave model.head unset.")
    for layer in layers:
        layer.reset_parameters()


def arguments(model: str, classes: int, image_size: int | None) -> dict[str, int]:
    """What timm, or the user's own factory, is called with for the network `model`."""
    sized = _is_sized(factory(model)) if is_import_path(model) else _is_made_for_one_size(model)
    return {"num_classes": classes, "in_chans": 1} | ({"img_size": image_size} if image_size and sized else {})


def _is_sized(make: Callable[..., Any]) -> bool:
    try:
        return "img_size" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # of a builtin
        return False


def _is_made_for_one_size(name: str) -> bool:
    import timm

    try:
        cfg = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that timm does not know, which it says when the model is made
        return False
    return cfg is not None and cfg.fixed_input_size


def _own(model: Model, classes: int, image_size: int | None) -> torch.nn.Module:
    make = factory(model.model)
    if model.weights:
        raise UserError(f"model.weights is for timm's models; load {model.weights} in {model.model}.")
    options = arguments(model.model, classes, image_size)
    try:
        net = make(**options)
    except Exception as error:  # it may raise anything
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise UserError(f"{model.model}({given}) failed ({_reason(error)}).") from error
    if not isinstance(net, torch.nn.Module):
        raise UserError(f"{model.model} returned {type(net).__name__}; it must return a torch.nn.Module.")
    return net


def _of_timm(model: Model, classes: int, image_size: int | None) -> torch.nn.Module:
    import timm

    from . import fast_net  # noqa: F401  (registers its models)

    if not timm.is_model(model.model):
        similar = get_close_matches(model.model, timm.list_models())
        hint = f", but {', '.join(similar)}" if similar else ""
        raise UserError(
            f"timm has no model {model.model!r}{hint}; set model.model to one of timm.list_models(), or to "
            "package.module:factory for your own."
        )
    options = arguments(model.model, classes, image_size)
    if model.pretrained:
        return _from_file(model, options) if model.weights else _from_hub(model, options)
    try:
        return _created(model.model, options)
    except Exception as error:  # timm's models may raise anything
        size = f" of {image_size}×{image_size}" if image_size else ""
        raise UserError(
            f"{model.model} cannot be built for 1-channel images{size} ({_reason(error)}); choose another "
            "model.model or data.image_size."
        ) from error


def _created(name: str, options: dict[str, Any], **more: Any) -> torch.nn.Module:
    """timm's model; without `img_size` where its constructor has no such argument."""
    import timm

    try:
        return timm.create_model(name, **options, **more)
    except TypeError as error:
        if "img_size" not in options or "img_size" not in str(error):
            raise
        return timm.create_model(name, **{**options, "img_size": None}, **more)


def _check_patches(net: torch.nn.Module, name: str, image_size: int | None) -> None:
    """timm cuts off what does not fill a patch, without a word."""
    from timm.layers import PatchEmbed

    for module in net.modules():
        if image_size and isinstance(module, PatchEmbed) and not module.dynamic_img_pad:
            side = max(module.patch_size)
            if image_size % side:
                sizes = [size for size in (image_size // side * side, (image_size // side + 1) * side) if size >= 8]
                raise UserError(
                    f"{name} takes images in patches of {side}×{side}, and {image_size} is not a multiple of {side}; "
                    f"set data.image_size {' or '.join(map(str, sizes))}."
                )


def _from_file(model: Model, options: dict[str, Any]) -> torch.nn.Module:
    path = located(model.weights, FILE)
    if path.is_dir():
        path /= FILE.relative_to(FOLDER)  # of a run
    if not path.is_file():
        raise UserError(f"{path} is not a file; set model.weights to a file with weights of {model.model}, or a run.")
    try:
        is_uncompressed_zip(path)  # only for its error: legacy pickles are accepted too
        # Only through the overlay does timm fold the RGB stem of a local file and drop its classifier.
        overlay = {"file": str(path), **_classes_in(path, model.model)}
        return _created(model.model, options, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:
        raise UserError(
            f"{path} does not hold weights of {model.model} ({_reason(error)}); set model.weights to another file."
        ) from error


def _classes_in(path: Path, name: str) -> dict[str, int]:
    """As timm's config has it, so that it keeps the file's classifier where it fits, and only there."""
    import timm

    cfg = timm.models.get_pretrained_cfg(name)
    if cfg is None or cfg.custom_load:
        return {}
    weights = timm.models.load_state_dict(str(path))
    rows = {len(weights[key]) for head in _names(cfg.classifier) if (key := f"{head}.weight") in weights}
    return {"num_classes": rows.pop()} if len(rows) == 1 else {}


def _from_hub(model: Model, options: dict[str, Any]) -> torch.nn.Module:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    # Without a network the hub's client retries for 47 s; in offline mode it checks its cache and fails at once.
    constants.HF_HUB_OFFLINE = offline or not reachable(constants.ENDPOINT)
    try:
        return _created(model.model, options, pretrained=True)
    except Exception as error:
        raise UserError(
            f"The pretrained weights of {model.model} could not be downloaded from {constants.ENDPOINT} "
            f"({_reason(error)}); set model.weights to a local file, or turn off model.pretrained."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}".splitlines()[0].strip()
