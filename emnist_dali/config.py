"""What a run does, as a small tree of frozen dataclasses; a recipe is a named instance of it.

A field with `help` is an option of `emnist-dali train`; the command line only overrides. Imports neither torch
nor numpy: `--help` needs this module.
"""

import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .core.errors import UserError
from .core.files import MAX_NAME, is_component, is_plain

Backend = Literal["auto", "dali", "cpu", "synthetic"]
Amp = Literal["auto", "native", "bf16", "fp16", "off"]
Compile = Literal["auto", "on", "off"]
Optimizer = Literal["lion", "adamw", "adam", "sgd", "muon"]
Schedule = Literal["cosine", "restarts"]
Wandb = Literal["disabled", "offline", "online"]


MOST = 1e30  # of any float: float32 ends at 3 · 10³⁸


def _check(sound: bool, name: str, value: Any, range_: str) -> None:
    if not sound:
        raise UserError(f"{name} is {value!s:.80}; it must be {range_}.")


def _check_values(node: Any) -> None:
    """Every number is finite and of a size that any library takes, every text one that a line of a terminal shows."""
    for field_ in fields(node):
        value = getattr(node, field_.name)
        name = "--" + field_.name.replace("_", "-") if "help" in field_.metadata else field_.name
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float):
                _check(abs(item) <= MOST, name, item, "finite, and of at most 10³⁰")
            elif isinstance(item, int):
                _check(abs(item) < 2**63, name, f"{item:.3g}" if abs(item) < 1e300 else "huge", "below 2⁶³")
            elif isinstance(item, str):
                _check(
                    is_plain(item),
                    name,
                    ascii(item)[:80],
                    f"text without control characters, of at most {MAX_NAME:,}",
                )


def option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Random affine augmentation; every number is the largest deviation either way."""

    rotation: tuple[float, ...] = ()  # radians; several angles are drawn apart and added
    scale: float = 0.0  # about 1
    shear: float = 0.0  # tangent of the angle
    translation: float = 0.0  # share of the side
    flip: float = 0.0  # probability of a left-right flip; glyphs are chiral: only `seed` has it

    def __post_init__(self) -> None:
        for angle in self.rotation:
            _check(0 <= angle <= 7, "rotation", angle, "from 0 to 7")
        _check(0 <= self.scale < 1, "scale", self.scale, "from 0 to below 1")
        _check(0 <= self.shear <= 10, "shear", self.shear, "from 0 to 10")
        for name in ("translation", "flip"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Data:
    split: str = option("balanced", "EMNIST split, or the name of your own images.")
    data_dir: str = option("data", "Folder of the prepared splits.")
    source: str | None = option(
        None,
        "official, glyphs, or a path to idx files, gzip.zip or a folder of images.  [default: what is prepared]",
    )
    val_fraction: float = option(0.05, "Share of the train split held out for validation; 0 trains on everything.")
    image_size: int = option(112, "Side of the images that the model sees, in pixels.")
    batch_size: int = option(512, "Images a micro-batch, all ranks together.")
    backend: Backend = option("auto", "Input pipeline; auto is dali with a GPU, cpu without.")
    verify_data: bool = option(False, "Hash every shard first, also those that have not changed since that was done.")
    equalize: bool = True
    affine: Affine | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.val_fraction < 1, "--val-fraction", self.val_fraction, "from 0 to below 1")
        _check(8 <= self.image_size <= 1024, "--image-size", self.image_size, "from 8 to 1024")
        _check(1 <= self.batch_size <= 2**20, "--batch-size", self.batch_size, "from 1 to 1,048,576")
        _check_values(self)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """MixUp and CutMix of whole batches (timm's `Mixup` in batch mode)."""

    mixup_alpha: float
    cutmix_alpha: float
    probability: float  # that a batch is mixed at all
    switch: float  # that a mixed batch is cut rather than blended
    until: float = 1.0  # share of the training after which no batch is mixed

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("probability", "switch", "until"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        _check_values(self)


@dataclass(frozen=True, kw_only=True)
class Model:
    model: str = option("efficientnet_b2", "Any timm model by its name.")
    pretrained: bool = option(True, "Start from timm's pretrained weights.")
    weights: str | None = option(None, "Local file of pretrained weights instead of the hub's.")
    stem: Literal["folded", "new"] = "folded"  # the pretrained RGB stem summed to 1 channel, or a random one
    stem_stride: int | None = None  # None keeps the model's own

    def __post_init__(self) -> None:
        if self.weights and not self.pretrained:
            raise UserError("--weights and --no-pretrained exclude each other; name one of them.")
        stride = self.stem_stride
        _check(stride is None or 1 <= stride <= 8, "stem_stride", stride, "from 1 to 8")
        _check_values(self)


@dataclass(frozen=True, kw_only=True)
class Training:
    epochs: int = option(20, "Epochs; the schedule spans them.")
    steps: int | None = option(
        None, "Stop after so many optimizer steps; evaluation takes at most 2,048 images then."
    )
    accumulation: int = 1  # micro-batches an optimizer step
    optimizer: Optimizer = option("lion", "Optimizer.")
    lr: float = option(2e-4, "Peak learning rate.")
    weight_decay: float = option(0.01, "Weight decay; norms and biases have none.")
    schedule: Schedule = option(
        "cosine",
        "cosine: warm-up, then to zero, a step at a time; restarts: warm restarts, an epoch at a time.",
    )
    warmup: float = 0.0  # epochs of linear warm-up
    restart_every: int = 8  # epochs, T_0 of `restarts`
    min_lr: float = 0.0  # end of each cosine
    clip: float = 1.0  # largest norm of the gradient
    label_smoothing: float = 0.1
    class_weights: bool = option(False, "Weight the loss by the classes' inverse frequency.")
    mixing: Mixing | None = None
    sync_bn: bool = option(False, "BatchNorm over the batches of all ranks; on GPUs only.")
    ema: float | None = None  # decay a step of the averaged weights; None trains without
    seed: int = option(0, "Seed of every random number.")

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "--epochs", self.epochs, "at least 1")
        _check(self.steps is None or self.steps >= 1, "--steps", self.steps, "at least 1")
        _check(self.accumulation >= 1, "accumulation", self.accumulation, "at least 1")
        _check(self.lr > 0, "--lr", self.lr, "above 0")
        _check(self.weight_decay >= 0, "--weight-decay", self.weight_decay, "0 or more")
        _check(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        _check(self.restart_every >= 1, "restart_every", self.restart_every, "at least 1")
        _check(self.min_lr >= 0, "min_lr", self.min_lr, "0 or more")
        _check(self.clip > 0, "clip", self.clip, "above 0")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")
        _check(self.ema is None or 0 <= self.ema < 1, "ema", self.ema, "from 0 to below 1")
        _check(0 <= self.seed < 2**63, "--seed", self.seed, "from 0 to 2⁶³ − 1")
        _check_values(self)


@dataclass(frozen=True, kw_only=True)
class Run:
    device: str = option("auto", "cuda, cuda:1, cpu; auto takes a GPU where there is one.")
    amp: Amp = option(
        "auto",
        "Mixed precision; auto: bf16 where the GPU has it, else fp16, and off on a CPU; native: bf16 where the "
        "processor has instructions for it, else off.",
    )
    compile: Compile = option("auto", "torch.compile of training and evaluation; auto is on with a GPU.")
    profile: bool = option(False, "Write a trace of ten steps for Perfetto; print the ten costliest operators.")
    out: str | None = option(None, "Run folder.  [default: runs/<split>-<recipe>-<time>]")
    wandb: Wandb = option("disabled", "Weights & Biases tracking.")
    wandb_group: str | None = option(None, "W&B group of runs that belong together.")
    checkpoint_every: str = option("600s", "Steps, or seconds with an s, between checkpoints.")
    keep: int = option(1, "Newest checkpoints to keep.")

    def __post_init__(self) -> None:
        sound = re.fullmatch(r"[1-9]\d{0,8}s?", self.checkpoint_every) is not None
        _check(sound, "--checkpoint-every", self.checkpoint_every, "a number of steps, or of seconds like 600s")
        _check(self.keep >= 1, "--keep", self.keep, "at least 1")
        _check_values(self)


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: str
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    run: Run = Run()

    def __post_init__(self) -> None:
        # It names run folders.
        _check(is_component(self.recipe), "recipe", ascii(self.recipe)[:200], "a plain name")

    def override(self, options: dict[str, Any]) -> "Config":
        """This config with every option that is not None in its place; names are unique in the tree.

        Raises UserError for a name that is not in it.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if "weights" in given:  # also where the recipe itself trains from scratch
            given = {"pretrained": True, **given}
        known = {f.name for part in (self.data, self.model, self.training, self.run) for f in fields(part)}
        if unknown := given.keys() - known:
            raise UserError(f"There is no setting {', '.join(sorted(unknown))}; the settings are in config.py.")
        parts = {}
        for part in ("data", "model", "training", "run"):
            node = getattr(self, part)
            own = {f.name for f in fields(node)} & given.keys()
            parts[part] = replace(node, **{name: given[name] for name in own})
        return replace(self, **parts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def from_dict(content: dict[str, Any], name: str = "This") -> Config:
    """The inverse of `Config.to_dict`, also after a way through JSON; UserError naming it where it does not fit."""
    try:
        return _build(Config, content)
    except (UserError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{name} is no config of this version ({str(error).rstrip('.')[:200]}).") from error


def _build(kind: type, content: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, hints[name], value) for name, value in content.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    """What JSON made of a field of type `hint`, as it was; TypeError where it is of another type."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        _check(value in choices, name, f"{value!r:.80}", f"one of {', '.join(choices)}")
        return value
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_value(name, choices[0], item) for item in value)
    for kind in choices or (hint,):  # the choices are those of `X | None`
        if is_dataclass(kind) and isinstance(value, dict):
            return _build(kind, value)
        if kind is float and type(value) in (int, float) and isfinite(value):
            return float(value)
        if kind is not float and type(value) is kind:
            return value
    raise TypeError(f"{name} is {value!r:.80}")
