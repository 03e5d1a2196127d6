"""The networks: any timm model with a 1-channel stem, seven small ones for 24×24 and 28×28, and the user's own."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from .build import build_model as build_model
    from .build import channels_last as channels_last
    from .import_path import trust as trust

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "build_model": ".build",
        "channels_last": ".build",
        "trust": ".import_path",
    },
)
