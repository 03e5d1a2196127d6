"""From a model and batches to figures: inference, metrics, and whether a difference is more than chance."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from .evaluate import predict_run as predict_run
    from .inference import predict as predict
    from .metrics import score as score
    from .robustness import measure_robustness as measure_robustness
    from .significance import compare as compare

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "predict_run": ".evaluate",
        "predict": ".inference",
        "score": ".metrics",
        "measure_robustness": ".robustness",
        "compare": ".significance",
    },
)
