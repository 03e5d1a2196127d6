"""From shards to batches: which samples, in which order, made by which backend."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from .backends import Batch as Batch
    from .batch_plan import BatchPlan as BatchPlan
    from .batch_plan import BatchSpec as BatchSpec
    from .loader import Loader as Loader

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Batch": ".backends",
        "BatchPlan": ".batch_plan",
        "BatchSpec": ".batch_plan",
        "Loader": ".loader",
    },
)
