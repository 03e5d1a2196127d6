"""A high-throughput EMNIST trainer around an NVIDIA DALI pipeline."""

from typing import TYPE_CHECKING

from .core.lazy import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import Config as Config
    from .data.prepare import prepare as prepare
    from .data.shards import Shards as Shards
    from .deploy.reading import read_text as read_text
    from .evaluation.evaluate import evaluate as evaluate
    from .loading.loader import Loader as Loader
    from .recipes import recipe as recipe
    from .runs.classifier import load_classifier as load_classifier
    from .training.session import train as train

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "prepare": ".data.prepare",
        "Shards": ".data.shards",
        "Loader": ".loading.loader",
        "Config": ".config",
        "recipe": ".recipes",
        "train": ".training.session",
        "evaluate": ".evaluation.evaluate",
        "load_classifier": ".runs.classifier",
        "read_text": ".deploy.reading",
    },
)
