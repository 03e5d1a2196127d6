"""The three makers of batches: an endless stream from batch `first` on, counted through all epochs.

A feed has `position`, the batch that `next()` gives, and `close()`, which ends what works ahead.
"""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .. import pipelines
from ..core.errors import UserError
from ..data.stats import Stats
from ..pipelines.fused import Preprocess
from .batch_plan import Plan

# Batches gathered before DALI asks for them, besides those in its own queue.
GATHERED_AHEAD = 2


class Batch(NamedTuple):
    """images (N, 1, S, S) float32 or float16, labels (N,) int64; padded rows have label −1."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass
class _Slot:
    images: torch.Tensor
    labels: torch.Tensor
    # On a GPU: when the copy to the device is through and the slot may be filled again.
    copied: torch.cuda.Event | None = None


class CpuBackend:
    """Worker threads, each filling a whole slot of a ring with the fused kernel."""

    def __init__(self, plan: Plan, first: int, stats: Stats, device: torch.device, half: bool, threads: int) -> None:
        self.position = self._ahead = first
        self._plan, self._device, self._half = plan, device, half
        self._preprocess = Preprocess(
            plan.shards.shape,
            plan.size,
            stats.mean,
            stats.std,
            compressed=plan.shards.compressed,
            equalize=stats.equalize,
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._filling: deque[tuple[_Slot, Future]] = deque()
        self._handed: deque[_Slot] = deque()
        pin, share = self._device.type == "cuda", plan.share
        # One batch a thread in the making, one ready, and the two that the consumer may hold.
        for _ in range(threads + 3):
            images = torch.empty((share, 1, plan.size, plan.size), pin_memory=pin)
            self._submit(_Slot(images, torch.empty(share, dtype=torch.int64, pin_memory=pin)))

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
            return Batch(slot.images, slot.labels)
        images = slot.images.to(self._device, non_blocking=True)
        labels = slot.labels.to(self._device, non_blocking=True)
        slot.copied = torch.cuda.Event()
        slot.copied.record(torch.cuda.current_stream(self._device))
        return Batch(images.half() if self._half else images, labels)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class DaliBackend:
    """The DALI graph, on a GPU or on DALI's CPU operators."""

    def __init__(self, plan: Plan, first: int, stats: Stats, device: torch.device, half: bool, threads: int) -> None:
        try:
            from ..pipelines import dali
        except ImportError as error:
            raise UserError(
                f"DALI could not be imported ({error}); install nvidia-dali-cuda120 (Linux) or take --backend cpu."
            ) from error
        on_gpu, share = device.type == "cuda", plan.share
        self.position = self._first = first
        self._plan, self._run = plan, dali.run
        # DALI has LZ4 on the GPU only.
        self._compressed = on_gpu and plan.shards.compressed
        self._blocks = share // dali.block_size(share)
        # DALI asks for a batch in the training thread: another one gathers ahead, and only the handing over waits.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._gathered = deque(self._pool.submit(self._gather, first + i) for i in range(GATHERED_AHEAD))
        self._error: UserError | None = None
        try:
            self._pipeline = dali.build(
                self._source,
                batch_size=share,
                device_id=(device.index or 0) if on_gpu else None,
                threads=threads,
                compressed=self._compressed,
                warped=plan.affine is not None,
                shape=plan.shards.shape,
                size=plan.size,
                mean=stats.mean,
                std=stats.std,
                half=half,
                equalize=stats.equalize,
            )
        except RuntimeError as error:
            self._pool.shutdown(cancel_futures=True)
            raise _one_sentence(error) from error

    def _source(self, i: int) -> tuple:
        self._gathered.append(self._pool.submit(self._gather, self._first + i + GATHERED_AHEAD))
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
    return UserError(f"DALI could not make a batch ({cause}); try --backend cpu.")


class SyntheticBackend:
    """One resident random batch: what training could do if data cost nothing."""

    def __init__(self, plan: Plan, first: int, stats: Stats, device: torch.device, half: bool, threads: int) -> None:
        self.position = first
        generator = torch.Generator().manual_seed(plan.seed)
        images = torch.randn((plan.share, 1, plan.size, plan.size), generator=generator)
        labels = torch.randint(len(plan.shards.manifest.classes), (plan.share,), generator=generator)
        dtype = torch.float16 if half else torch.float32
        self._batch = Batch(images.to(device, dtype), labels.to(device))

    def next(self) -> Batch:
        self.position += 1
        return self._batch

    def close(self) -> None:
        pass


BACKENDS = {"cpu": CpuBackend, "dali": DaliBackend, "synthetic": SyntheticBackend}


def engine(backend: str) -> str:
    """sha256 over the code that makes a backend's pixels, DALI's version included: equal for equal pixels."""
    files = {"cpu": ("fused.py", "affine.py"), "dali": ("dali.py", "affine.py"), "synthetic": ()}[backend]
    digest = hashlib.sha256()
    for name in files:
        digest.update((Path(pipelines.__file__).parent / name).read_bytes())
    if backend == "dali":
        from nvidia import dali

        digest.update(dali.__version__.encode())
    return digest.hexdigest()
