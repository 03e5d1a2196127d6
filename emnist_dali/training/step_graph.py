"""An optimizer step as one CUDA graph."""

from collections.abc import Callable

import torch

# Before a capture, so that kernels are chosen and workspaces allocated; the number is PyTorch's own.
WARM_UP_STEPS = 3


class StepGraph:
    """Captures `step(images, targets)`, and from then on starts all of its kernels by one call.

    `images` and `targets` are examples: every call needs the same shapes, dtypes and strides. What `step` changes, it
    changes in place. Constructing it takes WARM_UP_STEPS steps (PyTorch, «CUDA semantics: whole-network capture»).
    """

    def __init__(
        self, step: Callable[[torch.Tensor, torch.Tensor], None], images: torch.Tensor, targets: torch.Tensor
    ) -> None:
        self._inputs = images.clone(), targets.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Only this thread's calls count: the loader's threads go on allocating memory.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            step(*self._inputs)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        for held, given in zip(self._inputs, (images, targets), strict=True):
            held.copy_(given)
        self._graph.replay()
