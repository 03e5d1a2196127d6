"""The three makers of batches."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from .. import pipelines
from ..core.errors import UserError
from ..pipelines.fused import Preprocess
from ..pipelines.pixels import PixelSpec
from .batch_plan import BatchPlan

# Batches gathered before DALI asks for them, besides those in its own queue.
GATHERED_AHEAD = 2


class Batch(NamedTuple):
    """images (N, 1, S, S) float32 or float16, labels (N,) int64; padded rows have label −1."""

    images: torch.Tensor
    labels: torch.Tensor


class Backend(Protocol):
    """An endless stream of batches; `position` is the one that `next()` gives, counted through all epochs."""

    position: int

    def next(self) -> Batch: ...

    def close(self) -> None:
        """Ends what works ahead."""


# Makes a backend of (plan, first batch, pixels, device, threads).
MakeBackend = Callable[[BatchPlan, int, PixelSpec, torch.device, int], Backend]


@dataclass
class _Slot:
    images: torch.Tensor
    labels: torch.Tensor
    # On a GPU: when the copy to the device is through and the slot may be filled again.
    copied: torch.cuda.Event | None = None


class CpuBackend:
    """Worker threads, each filling a whole slot of a ring with the fused kernel.

    On a GPU the slots are `pinned`, so that copies to the device do not block.
    """

    def __init__(
        self,
        plan: BatchPlan,
        first: int,
        pixels: PixelSpec,
        device: torch.device,
        threads: int,
        *,
        pinned: bool = True,
    ) -> None:
        self.position = self._ahead = first
        self._plan, self._device, self._dtype = plan, device, getattr(torch, pixels.dtype)
        self._preprocess = Preprocess(pixels, compressed=plan.shards.compressed)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._filling: deque[tuple[_Slot, Future]] = deque()
        self._handed: deque[_Slot] = deque()
        pin, n = pinned and device.type == "cuda", plan.spec.local_batch_size
        # One batch a thread in the making, one ready, and the two that the consumer may hold.
        for _ in range(threads + 3):
            images = torch.empty((n, 1, pixels.size, pixels.size), pin_memory=pin)
            self._submit(_Slot(images, torch.empty(n, dtype=torch.int64, pin_memory=pin)))

    def _submit(self, slot: _Slot) -> None:
        self._filling.append((slot, self._pool.submit(self._fill, slot, self._ahead)))
        self._ahead += 1

    def _fill(self, slot: _Slot, i: int) -> None:
        if slot.copied is not None:
            slot.copied.synchronize()
        planned = self._plan.batch(i)
        slot.labels.numpy()[:] = planned.labels
        images = slot.images.numpy()[:, 0]
        self._plan.shards.preprocess(self._preprocess, planned.indices, planned.matrices, images)
        images[len(planned.indices) :] = 0

    def next(self) -> Batch:
        if len(self._handed) == 2:
            self._submit(self._handed.popleft())
        slot, filled = self._filling.popleft()
        filled.result()
        self._handed.append(slot)
        self.position += 1
        if self._device.type == "cpu":
            return Batch(slot.images.to(self._dtype), slot.labels)
        images = slot.images.to(self._device, non_blocking=True)
        labels = slot.labels.to(self._device, non_blocking=True)
        slot.copied = torch.cuda.Event()
        slot.copied.record(torch.cuda.current_stream(self._device))
        return Batch(images.to(self._dtype), labels)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class DaliBackend:
    """The DALI graph, on a GPU or on DALI's CPU operators.

    `block` is the number of images in one DALI sample, `queue` the batches that DALI makes ahead, `gathered_ahead`
    those gathered before DALI asks for them; None takes the pipeline's default.
    """

    def __init__(
        self,
        plan: BatchPlan,
        first: int,
        pixels: PixelSpec,
        device: torch.device,
        threads: int,
        *,
        block: int | None = None,
        queue: int | None = None,
        gathered_ahead: int = GATHERED_AHEAD,
    ) -> None:
        try:
            from ..pipelines import dali
        except ImportError as error:
            raise UserError(
                f"DALI could not be imported ({error}); install nvidia-dali-cuda120 (Linux) or take data.backend cpu."
            ) from error
        on_gpu, n = device.type == "cuda", plan.spec.local_batch_size
        self.position = self._first = first
        self._plan, self._run, self._gathered_ahead = plan, dali.run, gathered_ahead
        # DALI has LZ4 on the GPU only.
        self._compressed = on_gpu and plan.shards.compressed
        self._blocks = n // dali.block_size(n, block or dali.BLOCK)
        # DALI asks for a batch in the training thread: another one gathers ahead, and only the handing over waits.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._gathered = deque(self._pool.submit(self._gather, first + i) for i in range(gathered_ahead))
        self._error: UserError | None = None
        try:
            self._pipeline = dali.build(
                self._source,
                pixels,
                blocks=self._blocks,
                device_id=(device.index or 0) if on_gpu else None,
                threads=threads,
                compressed=self._compressed,
                warped=plan.spec.affine is not None,
                queue=queue or dali.QUEUE,
            )
        except RuntimeError as error:
            self._pool.shutdown(cancel_futures=True)
            raise _one_sentence(error) from error

    def _source(self, i: int) -> tuple:
        self._gathered.append(self._pool.submit(self._gather, self._first + i + self._gathered_ahead))
        try:
            return self._gathered.popleft().result()
        except UserError as error:  # DALI would wrap it in a traceback of its own
            self._error = error
            raise

    def _gather(self, i: int) -> tuple:
        planned = self._plan.batch(i)
        # Padding repeats a sample; its label says that it does not count.
        indices = planned.indices if len(planned.indices) else np.zeros(1, np.int64)
        indices = np.resize(indices, len(planned.labels))
        parts = [np.split(planned.labels, self._blocks)]
        if self._compressed:
            records, sizes = self._plan.shards.records(indices)
            chunks = sizes.astype(np.int32).reshape(self._blocks, -1)
            parts += [np.split(records, np.cumsum(chunks.sum(1))[:-1]), chunks]
        else:
            images = self._plan.shards.images(indices)[..., None]
            parts.append(images.reshape(self._blocks, -1, *images.shape[1:]))
        if len(planned.matrices):
            parts.append(np.split(planned.matrices, self._blocks))
        return tuple(parts)

    def next(self) -> Batch:
        try:
            images, labels = self._run(self._pipeline)
        except RuntimeError as error:
            raise self._error or _one_sentence(error) from error
        self.position += 1
        return Batch(images, labels)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        del self._pipeline


def _one_sentence(error: RuntimeError) -> UserError:
    """DALI's message without its traces: the cause stands after the operator and where that is in our code."""
    said = str(error).split("Stacktrace")[0].split("encountered:")[-1].strip()
    cause = said.splitlines()[0] if said else type(error).__name__
    return UserError(f"DALI could not make a batch ({cause}); try data.backend cpu.")


class SyntheticBackend:
    """One resident random batch: what training could do if data cost nothing."""

    def __init__(self, plan: BatchPlan, first: int, pixels: PixelSpec, device: torch.device, threads: int) -> None:
        self.position = first
        n, generator = plan.spec.local_batch_size, torch.Generator().manual_seed(plan.spec.seed)
        images = torch.randn((n, 1, pixels.size, pixels.size), generator=generator)
        labels = torch.randint(len(plan.shards.manifest.classes), (n,), generator=generator)
        self._batch = Batch(images.to(device, getattr(torch, pixels.dtype)), labels.to(device))

    def next(self) -> Batch:
        self.position += 1
        return self._batch

    def close(self) -> None:
        pass


BACKENDS: dict[str, MakeBackend] = {"cpu": CpuBackend, "dali": DaliBackend, "synthetic": SyntheticBackend}


# What older checkpoints have in the place of `engine`: a digest of the engines' source.
_DIGESTS = {
    "0ede23b0a0929e272ba8765f8ac44314506107c1b81e6cbc644011ed4abcc3ee": "cpu 1",
    "792a319a9903e0722d514f8c58faf913644c73dd07ef823d780f271ff62a9ad1": "dali 1 (2.4.0)",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": "synthetic 1",
}


def recorded_engine(name: str) -> str:
    """The `engine` that a checkpoint names."""
    return _DIGESTS.get(name, name)


def engine(backend: str) -> str:
    """Names what makes a backend's pixels: equal for equal pixels."""
    if backend != "dali":
        return f"{backend} {pipelines.VERSION}"
    from nvidia import dali

    return f"dali {pipelines.VERSION} ({dali.__version__})"
