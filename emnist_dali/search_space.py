"""What a sweep searches: which settings, within which bounds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from .config import Config, Mixing
from .device import resolve
from .errors import UserError

if TYPE_CHECKING:
    from optuna import Trial

DIMENSIONS = ("optimizer", "lr", "weight-decay", "schedule", "mixing", "image-size")
OPTIMIZERS = ("lion", "adamw", "adam", "sgd")
SIZES = (28, 32, 56, 84, 112)
# Pixels; a training takes 16 times as long at 112 as at 28, on a CPU hours instead of minutes.
LARGEST_ON_CPU = 56

# What learning rate and weight decay usually are, as multiples of AdamW's. Lion: a third to a tenth of the rate, as
# much more decay (arXiv:2302.06675). Adam and SGD add the decay to the gradient: AdamW's 0.05 is their 5e-5 and 5e-4.
USUAL = {"lion": (0.2, 5.0), "adamw": (1.0, 1.0), "adam": (1.0, 1e-3), "sgd": (100.0, 1e-2), "muon": (5.0, 1.0)}


@dataclass(frozen=True)
class Space:
    """What a sweep tries: `config` with other settings in the dimensions `searched`.

    What is `fixed` of lr and weight_decay is the same with any optimizer.
    """

    config: Config
    searched: tuple[str, ...]
    fixed: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Pixels."""
        own, on_cpu = self.config.data.image_size, resolve(self.config).run.device == "cpu"
        return [size for size in SIZES if not on_cpu or size <= max(own, LARGEST_ON_CPU)]

    def own(self) -> dict[str, Any]:
        """The parameters of `config` itself."""
        training, size = self.config.training, self.config.data.image_size
        mixing = training.mixing or Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.0, switch=0.5)
        own = {
            "optimizer": training.optimizer,
            "lr_scale": 1.0,
            "weight_decay_scale": 1.0,
            "schedule": training.schedule,
            "mixing_probability": mixing.probability,
            "mixup_alpha": mixing.mixup_alpha,
            "cutmix_alpha": mixing.cutmix_alpha,
            "mixing_switch": mixing.switch,
        }
        return own | ({"image_size": size} if size in self.sizes else {})

    def suggest(self, trial: "Trial") -> dict[str, Any]:
        """A trial's parameters. No one depends on another: the sampler learns them together."""
        if "optimizer" in self.searched:
            own = self.config.training.optimizer
            trial.suggest_categorical("optimizer", list(dict.fromkeys((*OPTIMIZERS, own))))
        if "lr" in self.searched:
            trial.suggest_float("lr_scale", 0.1, 10, log=True)
        if "weight-decay" in self.searched:
            trial.suggest_float("weight_decay_scale", 0.1, 10, log=True)
        if "schedule" in self.searched:
            trial.suggest_categorical("schedule", ["cosine", "restarts"])
        if "mixing" in self.searched:
            trial.suggest_float("mixing_probability", 0, 1, step=0.2)  # 0 is without
            trial.suggest_float("mixup_alpha", 0.1, 2, log=True)
            trial.suggest_float("cutmix_alpha", 0.1, 2, log=True)
            trial.suggest_float("mixing_switch", 0, 1)
        if "image-size" in self.searched:
            trial.suggest_categorical("image_size", self.sizes)
        return trial.params

    def settings(self, params: dict[str, Any]) -> Config:
        """`config` with a trial's parameters in their places.

        `lr_scale` and `weight_decay_scale` are multiples of what is usual for the optimizer, where the recipe's own
        has the recipe's values. A recipe that has no restarts is given two cycles.
        """
        training = self.config.training
        optimizer, schedule = (params.get(name, getattr(training, name)) for name in ("optimizer", "schedule"))
        lr, decay = (of / own for of, own in zip(USUAL[optimizer], USUAL[training.optimizer], strict=True))
        values = {"optimizer": optimizer, "schedule": schedule, "image_size": params.get("image_size")}
        if "lr" not in self.fixed:
            values["lr"] = training.lr * lr * params.get("lr_scale", 1.0)
        if "weight_decay" not in self.fixed:
            values["weight_decay"] = training.weight_decay * decay * params.get("weight_decay_scale", 1.0)
        if schedule == "restarts" != training.schedule:
            values["restart_every"] = max(1, ceil((training.epochs - ceil(training.warmup)) / 2))
        config = self.config.override(values)
        if "mixing_probability" not in params:
            return config
        probability = params["mixing_probability"]
        mixing = Mixing(
            mixup_alpha=params["mixup_alpha"],
            cutmix_alpha=params["cutmix_alpha"],
            probability=probability,
            switch=params["mixing_switch"],
            until=training.mixing.until if training.mixing else 1.0,
        )
        return replace(config, training=replace(config.training, mixing=mixing if probability else None))


def dimensions(space: Sequence[str], given: Collection[str] = ()) -> tuple[str, ...]:
    """What is searched: `space`, or all but what the options `given` fix; UserError for an unknown or a fixed one."""
    if unknown := [name for name in space if name not in DIMENSIONS]:
        raise UserError(f"There is no dimension {', '.join(unknown)}; --space takes {', '.join(DIMENSIONS)}.")
    fixed = [name for name in DIMENSIONS if name.replace("-", "_") in given]
    if both := [name for name in fixed if name in space]:
        raise UserError(f"--{both[0]} and --space {both[0]} exclude each other; name one of them.")
    return tuple(name for name in DIMENSIONS if (name in space if space else name not in fixed))


def described(config: Config) -> str:
    """The settings that a sweep may search, for people."""
    training, mixing = config.training, config.training.mixing
    mixed = (
        f"{100 * mixing.probability:.0f} % (α {mixing.mixup_alpha:.2g} and {mixing.cutmix_alpha:.2g}, "
        f"{100 * mixing.switch:.0f} % cut)"
        if mixing
        else "off"
    )
    return (
        f"{training.optimizer}, lr {training.lr:.2g}, weight decay {training.weight_decay:.2g}, {training.schedule}, "
        f"mixing {mixed}, {config.data.image_size}×{config.data.image_size}"
    )
