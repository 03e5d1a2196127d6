"""The makers of batches."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, Protocol

import numpy as np
import torch

from .. import pipelines
from ..core.errors import UserError, is_out_of_memory
from ..core.files import reason
from ..core.progress import say
from ..data.shards import Shards
from ..pipelines import resident
from ..pipelines.fused import Preprocess
from ..pipelines.pixels import PixelSpec
from .batch_plan import BatchPlan

# Batches gathered before DALI asks for them, besides those in its own queue.
GATHERED_AHEAD = 2
# Images that the resident backend decodes in one call, and plans at once. The first batch waits for a plan: on one
# core of a Xeon 27 ms with a warp, 8 without.
DECODE_CHUNK, PLANNED_IMAGES = 2**13, 2**16
# `auto` takes the resident backend for a part of up to this share of a GPU's memory; the rest is the model's.
RESIDENT_SHARE = 0.25


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
        plan.read_ahead()
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
        planned.shards.preprocess(self._preprocess, planned.indices, planned.matrices, images)
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

    On a GPU a record that does not decode goes unnoticed. Therefore `Shards` hashes a shard before its first use and
    whenever its size or time has changed, and `Shards.check` looks again at each epoch. What is left, a disk that
    changes bytes under an old time, only `data.verify_data` finds.
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
        device_id = torch.cuda.current_device() if on_gpu and device.index is None else device.index
        plan.read_ahead()
        self.position = self._first = first
        self._plan, self._gathered_ahead = plan, gathered_ahead
        self._run, self._tensors = dali.run, dali.tensors
        # DALI has LZ4 on the GPU only.
        self._compressed = on_gpu and plan.shards.compressed
        self._blocks = n // dali.block_size(n, block or dali.BLOCK)
        # DALI asks for a batch in the training thread: another one gathers ahead, and only the handing over waits.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._gathered = deque(self._pool.submit(self._make, first + i) for i in range(gathered_ahead))
        self._error: UserError | None = None
        try:
            self._pipeline = dali.build(
                self._source,
                pixels,
                blocks=self._blocks,
                device_id=device_id if on_gpu else None,
                threads=threads,
                compressed=self._compressed,
                warped=plan.spec.affine is not None,
                queue=queue or dali.QUEUE,
            )
        except RuntimeError as error:
            self._pool.shutdown(cancel_futures=True)
            raise _one_sentence(error) from error

    def _source(self, i: int) -> tuple:
        self._gathered.append(self._pool.submit(self._make, self._first + i + self._gathered_ahead))
        try:
            return self._gathered.popleft().result()
        except UserError as error:  # DALI would wrap it in a traceback of its own
            self._error = error
            raise

    def _make(self, i: int) -> tuple:
        return self._tensors(self._gather(i))

    def _gather(self, i: int) -> tuple[np.ndarray, ...]:
        planned = self._plan.batch(i)
        # Padding repeats a sample; its label says that it does not count.
        indices = planned.indices
        if len(indices) < len(planned.labels):
            indices = np.resize(indices if len(indices) else np.zeros(1, np.int64), len(planned.labels))
        blocks = (self._blocks, len(indices) // self._blocks)
        parts = [planned.labels.reshape(blocks)]
        if self._compressed:
            parts += planned.shards.records(indices, self._blocks)
        else:
            images = planned.shards.images(indices)
            parts.append(images.reshape(*blocks, *images.shape[1:], 1))
        if len(planned.matrices):
            parts.append(planned.matrices.reshape(*blocks, 2, 3))
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


class ResidentBackend:
    """The plan's images on the device, decoded and equalized once at the start; a batch is made of them there.

    A thread plans many batches ahead, and a plan goes to the device as a whole, so that all the host does for a batch
    is a slice and a launch. Batches are allocated anew: torch's allocator hands the same memory out again, and on a
    GPU in the order of the stream, which a ring would need events for.
    """

    def __init__(self, plan: BatchPlan, first: int, pixels: PixelSpec, device: torch.device, threads: int) -> None:
        self.position = self._ahead = first
        self._plan, self._pixels, self._device = plan, pixels, device
        self._samples = np.arange(len(plan.shards)) if plan.indices is None else np.unique(plan.indices)
        self._rows = np.empty(len(plan.shards), np.int64)  # of each sample among the images
        self._rows[self._samples] = np.arange(len(self._samples))
        self._images = self._allocated()
        with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
            list(pool.map(self._decode, range(0, len(self._samples), DECODE_CHUNK)))
        self._batches_a_plan = min(max(PLANNED_IMAGES // plan.spec.local_batch_size, 1), plan.batches)
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._next_plan = self._submit()
        self._planned: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = deque()
        self._preprocess = self._engine()

    def _engine(self) -> Callable:
        """What makes a batch; on a GPU it is compiled now, instead of while the first batch is waited for."""
        if self._device.type == "cpu":
            return resident.batched
        rows = torch.zeros(1, dtype=torch.int64, device=self._device)
        matrices = torch.zeros((1, 2, 3), device=self._device) if self._plan.spec.affine else None
        try:
            resident.preprocess(self._images, rows, matrices, self._pixels)
        except Exception as error:  # Triton's own: it needs a C compiler, Python's headers and a GPU that it knows
            say(f"Triton does not run here ({reason(error)}): torch makes the batches, which takes more kernels.")
            return resident.batched
        return resident.preprocess

    def _allocated(self) -> torch.Tensor:
        shape = (len(self._samples), *self._pixels.shape)
        try:
            with torch.inference_mode(False):  # that mode is one thread's, and others write the images
                return torch.empty(shape, dtype=torch.uint8, device=self._device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{shape[0]:,} images of {shape[1]} × {shape[2]} do not fit the memory of {self._device}; take "
                f"data.backend {'dali' if self._device.type == 'cuda' else 'cpu'}."
            ) from error

    def _decode(self, start: int) -> None:
        images = self._plan.shards.images(self._samples[start : start + DECODE_CHUNK], equalize=self._pixels.equalize)
        self._images[start : start + DECODE_CHUNK].copy_(torch.from_numpy(images))

    def _submit(self) -> Future:
        first, self._ahead = self._ahead, self._ahead + self._batches_a_plan
        return self._planner.submit(self._make_plan, range(first, self._ahead))

    def _make_plan(self, batches: range) -> list[torch.Tensor]:
        """Rows of the images, labels and, where there is a warp, matrices: each (batches, N, …).

        Padding repeats the first image; its label says that it does not count.
        """
        shape, warped = (len(batches), self._plan.spec.local_batch_size), self._plan.spec.affine is not None
        rows, labels = np.zeros(shape, np.int64), np.empty(shape, np.int64)
        matrices = np.empty((*shape, 2, 3), np.float32)[: len(batches) if warped else 0]
        for k, batch in enumerate(map(self._plan.batch, batches)):
            rows[k, : len(batch.indices)] = self._rows[batch.indices]
            labels[k] = batch.labels
            if warped:
                matrices[k] = batch.matrices
        return [torch.from_numpy(array) for array in (rows, labels, matrices)]

    def _receive(self) -> None:
        """The next plan goes to the device while that works on."""
        plan, self._next_plan = self._next_plan.result(), self._submit()
        if self._device.type == "cuda":
            plan = [part.pin_memory().to(self._device, non_blocking=True) for part in plan]
        self._planned.extend(zip_longest(*plan))

    def next(self) -> Batch:
        if not self._planned:
            self._receive()
        rows, labels, matrices = self._planned.popleft()
        self.position += 1
        return Batch(self._preprocess(self._images, rows, matrices, self._pixels), labels)

    def close(self) -> None:
        self._planner.shutdown(cancel_futures=True)


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


BACKENDS: dict[str, MakeBackend] = {
    "cpu": CpuBackend,
    "dali": DaliBackend,
    "resident": ResidentBackend,
    "synthetic": SyntheticBackend,
}


def automatic(shards: Shards, device: torch.device) -> str:
    """The backend for `shards` that `auto` means on `device`."""
    if device.type == "cpu":
        return "cpu"
    decoded = len(shards) * shards.shape[0] * shards.shape[1]
    return "resident" if decoded <= RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory else "dali"


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
