"""Run folders and what they hold: settings, checkpoints, predictions, the finished model."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from .classifier import Classifier as Classifier
    from .classifier import load_classifier as load_classifier
    from .folder import RunFolder as RunFolder
    from .predictions import Predictions as Predictions

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Classifier": ".classifier",
        "load_classifier": ".classifier",
        "Predictions": ".predictions",
        "RunFolder": ".folder",
    },
)
