"""cuDNN and cuBLAS, which need a real driver: PyTorch's operations that call them, on a GPU that computes nothing.

Each notes the kernels that the library would start, at least one a result, and returns memory of the right shape and
layout. Workspaces, and kernels that a library adds for its own reasons, are not counted.
"""

import ctypes
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from .null_gpu import Kind, Log


def install(log: Log) -> torch.library.Library:
    """Replaces the operations on CUDA tensors, for as long as the result lives."""
    library = torch.library.Library("aten", "IMPL")
    replaced: dict[str, Callable] = {
        "convolution": _convolution,
        "convolution_backward": _convolution_backward,
        "cudnn_batch_norm": _batch_norm,
        "cudnn_batch_norm_backward": _batch_norm_backward,
        "_local_scalar_dense": _item,
    }
    for name in ("mm", "addmm", "bmm", "baddbmm"):
        replaced.update({name: _product, f"{name}.out": _product_into})
    for name in ("lt", "le", "gt", "ge"):
        replaced[f"{name}.Scalar"] = partial(_compare, getattr(operator, name))
    for name, function in replaced.items():
        library.impl(name, partial(function, log=log), "CUDA")
    return library


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *_: Any,
    log: Log,
) -> torch.Tensor:
    log.note("cuDNN convolution")
    if bias is not None:
        log.note("bias of a convolution")
    dimensions = zip(x.shape[2:], weight.shape[2:], strides, padding, dilation, strict=True)
    sides = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in dimensions]
    shape, layout = (len(x), len(weight), *sides), _layout(x, weight)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _convolution_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *settings: Any, log: Log
) -> tuple[torch.Tensor | None, ...]:
    wanted, layout = settings[-1], _layout(x, weight)
    for _ in filter(None, wanted):
        log.note("cuDNN convolution backward")
    results = [torch.empty_like(like, memory_format=layout) for like in (x, weight)]
    results.append(weight.new_empty(len(weight)))  # of the bias
    return tuple(result if is_wanted else None for result, is_wanted in zip(results, wanted, strict=True))


def _layout(*tensors: torch.Tensor) -> torch.memory_format:
    """cuDNN's: channels-last, if the strides of one tensor say so."""
    is_last = any(suggest_memory_format(tensor) == torch.channels_last for tensor in tensors)
    return torch.channels_last if is_last else torch.contiguous_format


def _batch_norm(x: torch.Tensor, weight: torch.Tensor, *_: Any, log: Log) -> tuple[torch.Tensor, ...]:
    log.note("cuDNN batch norm")
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), x.new_empty(0)


def _batch_norm_backward(
    x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor, *_: Any, log: Log
) -> tuple[torch.Tensor, ...]:
    log.note("cuDNN batch norm backward")
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _product(*operands: torch.Tensor, log: Log, **_: Any) -> torch.Tensor:
    """Of the last two; a third is added."""
    log.note("cuBLAS product")
    left, right = operands[-2:]
    return right.new_empty((*left.shape[:-1], right.shape[-1]))


def _product_into(*_: torch.Tensor, out: torch.Tensor, log: Log, **__: Any) -> torch.Tensor:
    log.note("cuBLAS product")
    return out


def _item(number: torch.Tensor, log: Log) -> bool | float | int:
    """What is read from the device means nothing, but nothing fails for it: a loss is finite."""
    log.note("item", Kind.TO_HOST)
    torch.cuda.current_stream().synchronize()  # which a capture refuses
    return True if number.dtype == torch.bool else 1.0 if number.is_floating_point() else 1


def _compare(compare: Callable, values: torch.Tensor, other: float, log: Log) -> torch.Tensor:
    log.note("comparison")
    if values.dim() == 0:  # a learning rate, which optimizers check: the one value that decides about something
        return torch.tensor(compare(ctypes.c_float.from_address(values.data_ptr()).value, other))
    return torch.empty_like(values, dtype=torch.bool)
