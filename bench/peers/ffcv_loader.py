"""FFCV: raw pixels in a beton, whose pages the system caches.

It has no operation that equalizes. With the `kernel` "torch" its loader gives whole batches of raw pixels, which
torch preprocesses; with "fused" and "streamed" one numba operation made of this project's
kernel does so in FFCV's own threads, "streamed" past the caches, which FFCV itself cannot do.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from ffcv.fields import IntField, NDArrayField
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.transforms import ToDevice, ToTensor
from ffcv.traversal_order import Random
from ffcv.writer import DatasetWriter

from emnist_dali.pipelines.fused import (
    BYTES,
    COUNTERS,
    STREAMED,
    _equalization,
    _fence,
    _look_up,
    _resize_columns,
    _resize_rows,
    _stream_columns,
    bilinear_axis,
)

from . import whole_batches
from .work import Batch, Missing, Stream, Work

AHEAD = 2  # batches; 1, 2 and 3 are equally fast
EPOCH_IMAGES = 1 << 22  # in one of FFCV's epochs


class LongEpochs(Random):
    """Joins many permutations, each cut to whole batches, into one of FFCV's epochs.

    After an epoch FFCV drains its queues and reallocates its memory: 28 % of the time with 20,000 images at 112×112.
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        self._whole = len(loader.indices) // loader.batch_size * loader.batch_size

    def sample_order(self, epoch: int) -> np.ndarray:
        epochs = -(-EPOCH_IMAGES // self._whole)
        orders = (super(LongEpochs, self).sample_order(epoch * epochs + i)[: self._whole] for i in range(epochs))
        return np.concatenate(list(orders))


class Preprocess(Operation):
    """(B, H, W) uint8 → (B, 1, S, S) float32 with the numba functions of this project's CPU engine.

    FFCV compiles with `fastmath`, so one grey level in a thousand is off by 1. The loops are written out here because
    FFCV compiles its operations itself, and the engine's own kernel starts from records.
    """

    def __init__(self, work: Work, streamed: bool) -> None:
        super().__init__()
        self._streamed, self._threads, self._size = streamed, work.threads, work.size
        self._scale, self._shift = np.float32(1 / (255 * work.std)), np.float32(-work.mean / work.std)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        self._height, self._width = previous_state.shape
        shape, dtype = (1, self._size, self._size), np.dtype("float32")
        return replace(previous_state, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable:
        height, width, size, scale, shift = self._height, self._width, self._size, self._scale, self._shift
        x0, x1, wx = bilinear_axis(width, size)
        y0, y1, wy = bilinear_axis(height, size)
        resized, streamed, threads = (height, width) != (size, size), self._streamed, self._threads
        parallel_range = Compiler.get_iterator()

        def preprocess(images, out):
            samples = images.shape[0]
            for thread in parallel_range(threads):
                lit = np.empty(height * width + BYTES, np.uint8)
                histograms = np.empty((COUNTERS, 256), np.int32)
                table = np.empty(256, np.uint8)
                levels = np.empty(256, np.float32)
                pixels = np.empty(height * width, np.float32)
                row = np.empty(width + 2, np.float32)
                lines = np.empty((height, size), np.float32)
                line = np.empty(size, np.float32)
                for i in range(thread * samples // threads, (thread + 1) * samples // threads):
                    image = images[i].reshape(height * width)
                    _equalization(image, lit, histograms, table)
                    if not resized:
                        _look_up(image, table, scale, shift, levels, out[i].reshape(size * size))
                        continue
                    _look_up(image, table, scale, shift, levels, pixels)
                    _resize_rows(pixels, x0, x1, wx, row, lines)
                    if streamed:
                        # FFCV's memory is torch's, which is aligned to 64 bytes.
                        _stream_columns(lines, y0, y1, wy, line, out.ctypes.data + i * size * size * 4)
                    else:
                        _resize_columns(lines, y0, y1, wy, out[i, 0])
                if streamed:
                    _fence()
            return out

        preprocess.is_parallel = True
        return preprocess


class Indexed:
    """(image, index) pairs for FFCV's writer."""

    def __init__(self, work: Work) -> None:
        self._images, self._repeats = work.images, work.repeats

    def __len__(self) -> int:
        return len(self._images) * self._repeats

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        index = place % len(self._images)
        return self._images[index], index


def write(work: Work, **_: object) -> None:
    fields = {"images": NDArrayField(work.images.dtype, work.shape[1:]), "indices": IntField()}
    DatasetWriter(str(work.own), fields, num_workers=work.threads).from_indexed_dataset(Indexed(work))


def stream(work: Work, kernel: str) -> Stream:
    if kernel != "torch" and work.affine:
        raise Missing("Its fused operation has no warp.")
    if kernel == "streamed" and (work.size % 16 or 4 * work.size**2 < STREAMED):
        raise Missing("Only images of at least 64×64 and a multiple of 16 are streamed.")
    to_torch = [ToTensor(), ToDevice(torch.device(work.device))] if work.on_gpu else [ToTensor()]
    operations = [] if kernel == "torch" else [Preprocess(work, kernel == "streamed")]
    loader = Loader(
        str(work.own),
        batch_size=work.batch_size,
        num_workers=work.threads,
        # Its documentation for data that do not fit memory; a random order would take all of their pages there.
        order=OrderOption.RANDOM if work.repeats == 1 else OrderOption.QUASI_RANDOM,
        os_cache=work.repeats == 1,
        batches_ahead=AHEAD,
        pipelines={
            "images": [NDArrayField.get_decoder_class(None)(), *operations, *to_torch],
            "indices": [IntField.get_decoder_class(None)(), *to_torch],
        },
    )
    if work.repeats == 1:
        # FFCV 1.0.2's own argument for this does not work: it calls the instance that it takes.
        loader.traversal_order = LongEpochs(loader)
        loader.first_traversal_order = loader.next_traversal_order()
    preprocess = whole_batches.Preprocess(work, work.shape[1:]) if kernel == "torch" else None

    def batches() -> Iterator[Batch]:
        while True:
            for images, indices in loader:
                indices = indices.flatten()
                yield Batch(preprocess(images, indices) if preprocess else images.to(work.dtype), indices)

    # Its queue, and one batch that waits for a place there.
    return Stream(batches(), ahead=AHEAD + 1)
