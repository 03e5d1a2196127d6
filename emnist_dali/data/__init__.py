"""From published files to shards: sources are read, packed once, and opened in milliseconds."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from .manifest import Manifest as Manifest
    from .manifest import read_manifest as read_manifest
    from .shards import Shards as Shards
    from .stats import Stats as Stats
    from .stats import statistics as statistics

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Manifest": ".manifest",
        "read_manifest": ".manifest",
        "Shards": ".shards",
        "Stats": ".stats",
        "statistics": ".stats",
    },
)
