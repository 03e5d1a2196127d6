"""The networks: any timm model with a 1-channel stem, and two small ones for 28×28 images."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from .build import build_model as build_model
    from .build import channels_last as channels_last

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "build_model": ".build",
        "channels_last": ".build",
    },
)
