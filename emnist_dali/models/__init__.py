"""The networks: any timm model with a 1-channel stem, and seven small ones for images of 24×24 and 28×28."""

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
