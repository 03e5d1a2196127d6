"""What oneDNN computes wrong in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def gradients_checked(net: torch.nn.Module) -> Iterator[None]:
    """A forward pass in this block raises ValueError if `net` cannot be trained in bfloat16 on a CPU.

    The weights' gradient of a channels-last depthwise convolution whose stride is larger than its image, such as 2 on
    1×1 pixels, is another one each time, up to 1e32 or nan: oneDNN in torch 2.14 reads past the image. Float32,
    float16 and channels-first are right.
    """

    def check(layer: torch.nn.Conv2d, inputs: tuple[Any, ...], _: torch.Tensor) -> None:
        sides, strides = inputs[0].shape[-2:], layer.stride
        if any(side < stride for side, stride in zip(sides, strides, strict=True)):
            raise ValueError(
                f"in bfloat16 on a CPU the gradient of a depthwise convolution of stride {strides[0]} on "
                f"{sides[0]}×{sides[1]} pixels is wrong unless run.amp is off"
            )

    depthwise = [m for m in net.modules() if type(m) is torch.nn.Conv2d and m.groups == m.in_channels > 1]
    hooks = [layer.register_forward_hook(check) for layer in depthwise]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
