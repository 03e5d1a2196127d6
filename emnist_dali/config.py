"""A run's settings: a small tree of frozen dataclasses. A recipe is a named instance of it.

A field with `help` is an option of `emnist-dali train`; `--set` reaches every field. Imports neither torch nor numpy,
because `--help` needs this module.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from .core.checked_fields import Part, changed, checked, description, setting, value_error, value_type
from .core.errors import UserError
from .core.files import is_folder_name

Backend = Literal["auto", "dali", "resident", "cpu", "synthetic"]
Amp = Literal["auto", "native", "bf16", "fp16", "off"]
Compile = Literal["off", "on", "graph"]
Optimizer = Literal["lion", "adamw", "adam", "sgd", "muon"]
Schedule = Literal["cosine", "restarts"]
Tracker = Literal["csv", "tensorboard", "wandb", "mlflow", "trackio"]
Freeze = Literal["none", "stem", "backbone"]
Wandb = Literal["disabled", "offline", "online"]

MAX_FOLDS = 20
# Fields that were removed, and the value that meant «off».
_REMOVED = {"erasing": 0, "elastic": 0}
# Fields that were added, by one of those beside them, and the value that runs before had.
_ADDED: dict[str, dict[str, Any]] = {
    "label_smoothing": {
        "momentum": 0.95,
        "logit_adjustment": 0.0,
        "balanced_sampling": False,
        "freeze": "none",
        "freeze_epochs": None,
        "layer_decay": None,
    },
    "equalize": {"shuffle_window": None, "folds": None, "fold": None},
    "stem_stride": {"head": "kept"},
}
RENAMED_RECIPES = {"seed": "published", "best": "improved"}


@dataclass(frozen=True, kw_only=True)
class Affine(Part, path="data.affine"):
    """Random affine augmentation; each number is the largest deviation in either direction."""

    rotation: tuple[float, ...] = setting((), ge=0, le=7)  # radians; several angles are drawn independently and added
    scale: float = setting(0.0, ge=0, lt=1)  # around 1
    shear: float = setting(0.0, ge=0, le=10)  # tangent of the angle
    translation: float = setting(0.0, ge=0, le=1)  # fraction of the side
    flip: float = setting(0.0, ge=0, le=1)  # probability of a mirroring; glyphs are chiral: only `published` has it


@dataclass(frozen=True, kw_only=True)
class Data(Part, path="data"):
    split: str = setting("balanced", "EMNIST split, or the name of your own dataset.  [default: balanced]")
    data_dir: str = setting("data", "Folder of the prepared splits.", affects_result=False)
    source: str | None = setting(
        None,
        "official, glyphs, or a path, as in prepare.  [default: what is prepared]",
        affects_result=False,
    )
    val_fraction: float = setting(
        0.05,
        "Fraction of the train split held out for validation; 0 trains on all of it. A validation part wins.",
        ge=0,
        lt=1,
    )
    image_size: int = setting(112, "Side of the model's input, in pixels.", ge=8, le=1024)
    batch_size: int = setting(512, "Global micro-batch size: images of all ranks together.", ge=1, le=2**20)
    backend: Backend = setting(
        "auto", "Input pipeline; auto is resident on a GPU that holds the images, dali on one too small, cpu without."
    )
    verify_data: bool = setting(
        False, "Hash every shard first, even those unchanged since the last check.", affects_result=False
    )
    equalize: bool = setting(True)
    shuffle_window: int | None = setting(
        None,
        "Images that are shuffled together and read ahead, in steps of 4096: for data larger than memory.  "
        "[default: all]",
        ge=4096,
    )
    affine: Affine | None = setting(None)
    # Cross-validation: of `folds` parts of the training images the validation is `fold`, from 1, not `val_fraction`.
    folds: int | None = setting(None, ge=2, le=MAX_FOLDS)
    fold: int | None = setting(None, ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.folds is None) != (self.fold is None) or (self.fold or 0) > (self.folds or 0):
            raise UserError(
                f"data.fold is {self.fold} and data.folds is {self.folds}; set both, the fold from 1 to the number "
                "of folds, or neither."
            )


@dataclass(frozen=True, kw_only=True)
class Model(Part, path="model"):
    model: str = setting("efficientnet_b2", "Name of any timm model, or your own network as package.module:factory.")
    pretrained: bool = setting(True, "Start from timm's pretrained weights.")
    weights: str | None = setting(
        None, "Local file or run with pretrained weights, or builtin for those in the package, instead of the hub's."
    )
    # `folded` sums the pretrained RGB stem to one channel; `new` initializes it at random.
    stem: Literal["folded", "new"] = setting("folded")
    stem_stride: int | None = setting(None, ge=1, le=8)  # None keeps the model's own
    # `kept` is that of the pretrained weights where it has as many classes; `new` initializes it at random.
    head: Literal["kept", "new"] = setting("kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and not self.pretrained:
            raise UserError("model.weights needs model.pretrained to be on; drop one of the two settings.")


@dataclass(frozen=True, kw_only=True)
class Mixing(Part, path="training.mixing"):
    """MixUp and CutMix of whole batches (timm's `Mixup` in batch mode)."""

    mixup_alpha: float = setting(gt=0)
    cutmix_alpha: float = setting(gt=0)
    probability: float = setting(ge=0, le=1)  # of mixing a batch at all
    switch: float = setting(ge=0, le=1)  # of CutMix rather than MixUp for a mixed batch
    until: float = setting(1.0, ge=0, le=1)  # fraction of the training after which no batch is mixed


@dataclass(frozen=True, kw_only=True)
class Training(Part, path="training"):
    epochs: int = setting(20, "Epochs; the schedule spans them.", ge=1)
    steps: int | None = setting(
        None, "Stop after this many optimizer steps; evaluation then takes at most 2,048 images.", ge=1
    )
    accumulation: int = setting(1, ge=1)  # micro-batches per optimizer step
    optimizer: Optimizer = setting("lion", "Optimizer.")
    lr: float = setting(2e-4, "Peak learning rate.", gt=0)
    momentum: float = setting(0.95, ge=0, lt=1)  # Muon's; SGD's is 0.9
    weight_decay: float = setting(0.01, "Weight decay; norms and biases have none.", ge=0)
    freeze: Freeze = setting(
        "none", "Weights of a pretrained model to keep: of its first layer, or all but the head."
    )
    freeze_epochs: int | None = setting(None, "Epochs for which these are kept.  [default: all]", ge=1)
    layer_decay: float | None = setting(
        None, "Factor on the rate from each layer of the model to the one before it, for fine-tuning.", gt=0, le=1
    )
    schedule: Schedule = setting(
        "cosine",
        "cosine: warm-up, then to zero, updated every step; restarts: warm restarts, updated every epoch.",
    )
    warmup: float = setting(0.0, ge=0)  # epochs of linear warm-up
    restart_every: int = setting(8, ge=1)  # epochs; T_0 of `restarts`
    min_lr: float = setting(0.0, ge=0)  # end of each cosine cycle
    clip: float = setting(1.0, gt=0)  # maximum gradient norm
    label_smoothing: float = setting(0.1, ge=0, lt=1)
    class_weights: bool = setting(False, "Weight the loss by inverse class frequency.")
    logit_adjustment: float = setting(
        0.0,
        "1 trains for balanced accuracy on imbalanced classes: this times the log frequencies is added to the logits "
        "in training.",
        ge=0,
        le=10,
    )
    balanced_sampling: bool = setting(
        False, "An epoch has equally many images of every class; small ones repeat theirs."
    )
    mixing: Mixing | None = setting(None)
    sync_bn: bool = setting(False, "Synchronize BatchNorm across ranks; GPUs only.")
    ema: float | None = setting(None, ge=0, lt=1)  # decay per step of the averaged weights; None disables averaging
    seed: int = setting(0, "Seed of all random numbers.", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_epochs and self.freeze == "none":
            raise UserError("training.freeze_epochs needs training.freeze, stem or backbone; drop one of the two.")
        if self.layer_decay and self.optimizer == "muon":
            raise UserError(
                "training.layer_decay needs an optimizer other than muon, which has one rate; set training.optimizer "
                "adamw and its training.lr."
            )
        corrections = ("class_weights", "logit_adjustment", "balanced_sampling")
        if len(used := [f"training.{name}" for name in corrections if getattr(self, name)]) > 1:
            raise UserError(
                f"{' and '.join(used)} each correct for imbalanced classes; keep one: training.logit_adjustment is "
                "off at 0, the others with --no-class-weights and --no-balanced-sampling."
            )


@dataclass(frozen=True, kw_only=True)
class Run(Part, path="run"):
    device: str = setting("auto", "cuda, cuda:1 or cpu; auto takes a GPU if there is one.", affects_result=False)
    amp: Amp = setting(
        "auto",
        "Mixed precision; auto: bf16 if the GPU supports it, else fp16, and off on a CPU; native: bf16 if the "
        "processor has instructions for it, else off.",
    )
    compile: Compile = setting(
        "off",
        "on: torch.compile for the training step; graph: each step as one CUDA graph where one can hold it, "
        "without compiling.",
    )
    profile: bool = setting(
        False, "Write a Perfetto trace of ten steps and print the ten costliest operators.", affects_result=False
    )
    out: str | None = setting(None, "Run folder.  [default: runs/<split>-<recipe>-<time>]", affects_result=False)
    track: tuple[Tracker, ...] = setting(
        (), "Trackers that also get the settings and metrics, offline; repeatable.", affects_result=False
    )
    wandb: Wandb = setting("disabled", "Weights & Biases tracking, also online.", affects_result=False)
    wandb_group: str | None = setting(None, "W&B group for runs that belong together.", affects_result=False)
    checkpoint_every: str = setting("600s", "Steps between checkpoints, or seconds with an s.", affects_result=False)
    keep: int = setting(1, "Number of latest checkpoints to keep.", affects_result=False, ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[1-9]\d{0,8}s?", self.checkpoint_every):
            raise value_error(
                "run.checkpoint_every", self.checkpoint_every, "a number of steps, or of seconds like 600s"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run.

    >>> from emnist_dali import recipe
    >>> config = recipe("cpu").override({"epochs": 3, "training.ema": None, "data.affine.shear": 0.0})
    >>> config.training.epochs, config.training.ema, config.data.affine.shear
    (3, None, 0.0)
    """

    recipe: str
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        if not is_folder_name(self.recipe):  # names run folders
            raise value_error("recipe", self.recipe, "a plain name")
        for name, part in PARTS.items():
            checked(name, getattr(self, name), part, {})

    def override(self, values: Mapping[str, Any]) -> "Config":
        """This config with other values; every change of one part is made, and checked, together.

        A name is a field of a part (`lr`), whose value None means unchanged, or a dotted path (`training.lr`,
        `data.affine.scale`), whose value None is a value. `weights` turn on `pretrained`. Raises UserError for an
        unknown name, a value out of range, and a field of Mixing alone for a config that has no mixing.
        """
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if "." in name or value is not None:
                changes[name if name in settings() else _path_of(name)] = value
        if changes.get("model.weights") is not None:  # for recipes that train from scratch
            changes = {"model.pretrained": True, **changes}
        return changed(Config, self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts that `from_dict` reads back."""
        return asdict(self)

    def free(self) -> dict[str, Any]:
        """The fields that cannot change a result, by path."""
        return {
            f"{name}.{f.name}": getattr(getattr(self, name), f.name)
            for name, part in PARTS.items()
            for f in fields(part)
            if not f.metadata["affects_result"]
        }

    def identity(self) -> dict[str, dict[str, Any]]:
        """The fields that can change a result, by part, as they come back from JSON.

        Two runs on the same data whose resolved configs have equal identities have equal results. Identities from
        files of older versions go through `current` first.
        """
        content = json.loads(json.dumps(asdict(self)))
        return {
            name: {f.name: content[name][f.name] for f in fields(part) if f.metadata["affects_result"]}
            for name, part in PARTS.items()
        }


PARTS: dict[str, type[Part]] = {"data": Data, "model": Model, "training": Training, "run": Run}


def from_dict(content: dict[str, Any], name: str = "This") -> Config:
    """The inverse of `Config.to_dict`, also after JSON and for older versions' configs.

    Raises UserError, which begins with `name`, if `content` is not a valid config.
    """
    try:
        content = current(content)
        for name_, off in _REMOVED.items():
            if name_ in content.get("training", {}):
                raise UserError(f"training.{name_} was removed; it can only be {off}")
        return _build(Config, content)
    except (UserError, TypeError, KeyError, AttributeError, OverflowError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is not a valid config ({str(error).rstrip('.')[:200]}).") from error


def current(content: dict[str, Any]) -> dict[str, Any]:
    """A config or an identity of an older version, nested or flat, as this version would write it.

    Drops removed fields that were off, adds those that were added, and renames recipes and values. What else does not
    fit stays as it is.
    """
    result = {}
    for name, value in content.items():
        if name in _REMOVED and value == _REMOVED[name]:
            continue
        if name == "recipe" and isinstance(value, str):
            value = RENAMED_RECIPES.get(value, value)
        if name == "compile" and value == "auto":  # was on with a GPU
            value = "off"
        result[name] = current(value) if name in PARTS and isinstance(value, dict) else value
    for beside, added in _ADDED.items():
        if beside in result:
            result = {**added, **result}
    return result


class Setting(NamedTuple):
    """What the command line needs to know about a field."""

    type: Any
    optional: bool  # None is a value
    help: str | None  # None: no option, only --set


@cache
def settings() -> dict[str, Setting]:
    """Every setting by its dotted path, including groups: `training.mixing` and `training.mixing.until`."""
    return {path: setting for part in PARTS.values() for path, setting in _settings(part)}


def _settings(part: type[Part]) -> Iterator[tuple[str, Setting]]:
    hints = get_type_hints(part)
    for field_ in fields(part):
        path, hint = f"{part.path}.{field_.name}", hints[field_.name]
        kind = value_type(hint)
        yield path, Setting(kind, kind is not hint, field_.metadata["help"])
        if is_dataclass(kind):
            yield from _settings(kind)


def _path_of(name: str) -> str:
    """The path of a field of a part, whose names are unique; raises UserError with a suggestion."""
    for part in PARTS:
        if f"{part}.{name}" in settings():
            return f"{part}.{name}"
    raise _unknown(name)


def _unknown(name: str, groups: Iterable[str] = ()) -> UserError:
    """`groups` are names that are not settings but may have been meant."""
    from difflib import get_close_matches

    by_leaf = {path.rpartition(".")[2]: path for path in settings()}
    close = get_close_matches(name, [*groups, *settings()], 1) or [
        by_leaf[leaf] for leaf in get_close_matches(name.rpartition(".")[2], by_leaf, 1)
    ]
    advice = f"did you mean {close[0]}?" if close else "the names are in emnist_dali/config.py."
    return UserError(f"There is no setting {ascii(name)[1:-1]:.80}; {advice}")


def flattened(content: Mapping[str, Any], groups: Iterable[str] = ()) -> dict[str, Any]:
    """Nested settings, as JSON, TOML or YAML has them, by path: what `Config.override` takes.

    The text `none` is None where that is a value, because TOML has no null. Raises UserError for an unknown name,
    with the nearest one; `groups` are other names that may have been meant.
    """
    return dict(_flattened("", content, [*PARTS, *groups]))


def _flattened(above: str, content: Mapping[str, Any], groups: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        path = f"{above}{name}"
        known = settings().get(path)
        if path not in PARTS and known is None:
            raise _unknown(path, groups)
        if path in PARTS or (is_dataclass(known.type) and isinstance(value, dict)):
            if not isinstance(value, dict):
                raise UserError(f"{path} is {value!a:.80}; it must be a group of settings.")
            yield from _flattened(f"{path}.", value, ())
        elif known.optional and value == "none":
            yield path, None
        else:
            yield path, _from_json(known.type, value)


def missing(content: Mapping[str, Any]) -> list[str]:
    """The paths of settings that can change a result, are not None by default, and are not in a nested config."""
    parts = current(dict(content))
    return [
        f"{name}.{f.name}"
        for name, part in PARTS.items()
        for f in fields(part)
        if f.metadata["affects_result"] and f.default is not None and f.name not in (parts.get(name) or {})
    ]


def parse(path: str, text: str) -> Any:
    """The value of the setting `path` that `text` stands for; raises UserError for an unknown name or another type.

    `none` is None; numbers of a tuple are separated by commas.
    """
    if path not in settings():
        raise _unknown(path)
    kind, optional, _ = settings()[path]
    if optional and text.lower() == "none":
        return None
    if is_dataclass(kind):
        names = ", ".join(f"{path}.{field_.name}" for field_ in fields(kind))
        raise UserError(f"{path} can only be none; its fields are {names}.")
    try:
        if get_origin(kind) is tuple:
            item_kind = get_args(kind)[0]
            items = text.split(",") if text else []
            return tuple(items if get_origin(item_kind) is Literal else map(item_kind, items))
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return text if get_origin(kind) is Literal else kind(text)
    except (ValueError, KeyError) as error:
        raise value_error(path, text, description(kind)) from error


def _build(kind: type, content: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    if unknown := content.keys() - {f.name for f in fields(kind)}:
        above = f"{kind.path}." if issubclass(kind, Part) else ""
        raise _unknown(f"{above}{min(unknown)}", () if above else ("base", "recipe", *PARTS))
    return kind(**{name: _from_json(hints[name], value) for name, value in content.items()})


def _from_json(hint: Any, value: Any) -> Any:
    """A field's value as it was before JSON; any other value stays as it is."""
    kind = value_type(hint)
    if is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(value)
    return value
