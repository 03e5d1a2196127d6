"""From a config to a trained model: the loop, what it is built of, and the life of a run around it."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from .build import Training as Training
    from .build import build_training as build_training
    from .session import Session as Session
    from .session import train as train
    from .trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Session": ".session",
        "train": ".session",
        "Trainer": ".trainer",
        "Training": ".build",
        "build_training": ".build",
    },
)
