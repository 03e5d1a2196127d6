"""What a sweep searches: which settings, within which bounds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from ..config import Config, Mixing
from ..core.errors import UserError
from ..runtime import resolve

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# The parameters of each dimension.
PARAMETERS = {
    "optimizer": ("optimizer",),
    "lr": ("lr_scale",),
    "weight-decay": ("weight_decay_scale",),
    "schedule": ("schedule",),
    "mixing": ("mixing_probability", "mixup_alpha", "cutmix_alpha", "mixing_switch"),
    "image-size": ("image_size",),
}
DIMENSIONS = tuple(PARAMETERS)
OPTIMIZERS = ("lion", "adamw", "adam", "sgd")
SIZES = (28, 32, 56, 84, 112)
# Pixels; training takes 16 times as long at 112 as at 28, on a CPU hours instead of minutes.
LARGEST_ON_CPU = 56

# Typical learning rate and weight decay as multiples of AdamW's. Lion: a third to a tenth of the rate, as much more
# decay (arXiv:2302.06675). Adam and SGD add the decay to the gradient: AdamW's 0.05 is their 5e-5 and 5e-4.
TYPICAL = {"lion": (0.2, 5.0), "adamw": (1.0, 1.0), "adam": (1.0, 1e-3), "sgd": (100.0, 1e-2), "muon": (5.0, 1.0)}


@dataclass(frozen=True)
class Space:
    """The configs that a sweep tries: `config` with other settings in the dimensions `searched`.

    `fixed` are those of lr and weight_decay that stay the same with any optimizer.
    """

    config: Config
    searched: tuple[str, ...]
    fixed: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Pixels, in order; `config`'s own is among them."""
        size, on_cpu = self.config.data.image_size, resolve(self.config).run.device == "cpu"
        return [choice for choice in sorted({*SIZES, size}) if not on_cpu or choice <= max(size, LARGEST_ON_CPU)]

    def recipe_params(self) -> dict[str, Any]:
        """The parameters of `config` itself."""
        training = self.config.training
        mixing = training.mixing or Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.0, switch=0.5)
        return {
            "optimizer": training.optimizer,
            "lr_scale": 1.0,
            "weight_decay_scale": 1.0,
            "schedule": training.schedule,
            "mixing_probability": mixing.probability,
            "mixup_alpha": mixing.mixup_alpha,
            "cutmix_alpha": mixing.cutmix_alpha,
            "mixing_switch": mixing.switch,
            "image_size": self.config.data.image_size,
        }

    @cached_property
    def ranges(self) -> dict[str, "BaseDistribution"]:
        """What each parameter may be; always includes `config`'s own."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        params = self.recipe_params()
        fifths = 5 * params["mixing_probability"]
        alphas = {
            name: FloatDistribution(min(0.1, params[name]), max(2.0, params[name]), log=True)
            for name in ("mixup_alpha", "cutmix_alpha")
        }
        return {
            "optimizer": CategoricalDistribution(tuple(dict.fromkeys((*OPTIMIZERS, params["optimizer"])))),
            "lr_scale": FloatDistribution(0.1, 10, log=True),
            "weight_decay_scale": FloatDistribution(0.1, 10, log=True),
            "schedule": CategoricalDistribution(("cosine", "restarts")),
            # 0 is without mixing.
            "mixing_probability": FloatDistribution(0, 1, step=0.2 if abs(fifths - round(fifths)) < 1e-8 else None),
            **alphas,
            "mixing_switch": FloatDistribution(0, 1),
            "image_size": CategoricalDistribution(self.sizes),
        }

    @property
    def distributions(self) -> dict[str, "BaseDistribution"]:
        """Of the searched parameters. None depends on another, so that the sampler can learn them jointly."""
        names = [name for dimension in self.searched for name in PARAMETERS[dimension]]
        return {name: self.ranges[name] for name in names}

    def fault(self, params: Any) -> str | None:
        """What is wrong with `params`, read from a database; None if a trial can have them."""
        if not isinstance(params, dict):
            return "the parameters are not an object"
        for name, value in params.items():
            if name not in self.ranges:
                return f"there is no parameter {name!r:.80}"
            if not _contains(self.ranges[name], value):
                return f"{name} is {value!r:.80}"
        return None

    def apply(self, params: dict[str, Any]) -> Config:
        """`config` with a trial's parameters.

        `lr_scale` and `weight_decay_scale` are multiples of the optimizer's typical values, scaled such that the
        recipe's own optimizer has the recipe's values at 1. A recipe without restarts gets two cycles. Raises
        UserError for parameters that this sweep cannot have tried.
        """
        fault, mixing = self.fault(params), PARAMETERS["mixing"]
        if not fault and any(name in params for name in mixing):
            fault = next((f"{name} is missing" for name in mixing if name not in params), None)
        if fault:
            raise UserError(
                f"No trial of this sweep has such parameters: {fault}; restore the database or choose another --name."
            )
        training = self.config.training
        optimizer = params.get("optimizer", training.optimizer)
        schedule = params.get("schedule", training.schedule)
        lr, decay = (new / old for new, old in zip(TYPICAL[optimizer], TYPICAL[training.optimizer], strict=True))
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


def _contains(range_: "BaseDistribution", value: Any) -> bool:
    if hasattr(range_, "choices"):
        return any(type(value) is type(choice) and value == choice for choice in range_.choices)
    return type(value) in (int, float) and range_.low <= value <= range_.high


def dimensions(space: Sequence[str], given: Collection[str] = ()) -> tuple[str, ...]:
    """What to search: `space`, or all that the options `given` do not fix; UserError for an unknown or fixed one."""
    if unknown := [name for name in space if name not in DIMENSIONS]:
        raise UserError(f"Unknown dimension {', '.join(unknown)}; --space takes {', '.join(DIMENSIONS)}.")
    fixed = [name for name in DIMENSIONS if name.replace("-", "_") in given]
    if both := [name for name in fixed if name in space]:
        field = ("data." if both[0] == "image-size" else "training.") + both[0].replace("-", "_")
        raise UserError(f"{field} and --space {both[0]} exclude each other; drop one of them.")
    return tuple(name for name in DIMENSIONS if (name in space if space else name not in fixed))


def describe(config: Config) -> str:
    """The settings that a sweep may search, on one line."""
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
