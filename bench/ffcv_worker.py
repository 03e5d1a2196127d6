"""Runs FFCV for peers.py in its own environment (ffcv.sh): ffcv_worker.py SETTINGS, in a scratch folder.

SETTINGS is JSON: size, mean, std, batch_size, device, half, threads, streamed; the images are in images.npy.
Prints true when it is ready, then answers each request, a JSON line on stdin, with a JSON line on stdout:
["batch"] with the name of an .npz, ["rate", seconds] with images/s.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

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
    _equalized_levels,
    _fence,
    _resize_columns,
    _resize_rows,
    _stream_columns,
    bilinear_axis,
)

# 1, 2 and 3 are equally fast.
BATCHES_AHEAD = 2
# Images in one of FFCV's epochs.
EPOCH_IMAGES = 1 << 22


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

    def __init__(self, size: int, mean: float, std: float, streamed: bool, threads: int) -> None:
        super().__init__()
        self._streamed, self._threads = streamed, threads
        self._size, self._scale, self._shift = size, np.float32(1 / (255 * std)), np.float32(-mean / std)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        self._height, self._width = previous_state.shape
        shape, dtype = (1, self._size, self._size), np.dtype("float32")
        return replace(previous_state, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable:
        height, width, size, scale, shift = self._height, self._width, self._size, self._scale, self._shift
        x0, x1, wx = bilinear_axis(width, size)
        y0, y1, wy = bilinear_axis(height, size)
        parallel_range = Compiler.get_iterator()

        def preprocess(images, out):
            for i in parallel_range(images.shape[0]):
                image = images[i].reshape(height * width)
                histograms = np.empty((4, 256), np.int32)
                levels = np.empty(256, np.float32)
                row = np.empty(width + 2, np.float32)
                lines = np.empty((height, size), np.float32)
                _equalized_levels(image, histograms, scale, shift, levels)
                _resize_rows(image, levels, x0, x1, wx, row, lines)
                _resize_columns(lines, y0, y1, wy, out[i, 0])
            return out

        threads = self._threads

        def preprocess_and_stream(images, out):
            samples = images.shape[0]
            for thread in parallel_range(threads):
                histograms = np.empty((4, 256), np.int32)
                levels = np.empty(256, np.float32)
                row = np.empty(width + 2, np.float32)
                lines = np.empty((height, size), np.float32)
                line = np.empty(size, np.float32)
                for i in range(thread * samples // threads, (thread + 1) * samples // threads):
                    image = images[i].reshape(height * width)
                    _equalized_levels(image, histograms, scale, shift, levels)
                    _resize_rows(image, levels, x0, x1, wx, row, lines)
                    # FFCV's memory is torch's, which is aligned to 64 bytes.
                    _stream_columns(lines, y0, y1, wy, line, out.ctypes.data + i * size * size * 4)
                _fence()
            return out

        code = preprocess_and_stream if self._streamed else preprocess
        code.is_parallel = True
        return code


class Indexed:
    """(image, index) pairs for FFCV's writer."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], index


def batches(settings: dict) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    device, path = torch.device(settings["device"]), Path("images.beton")
    if not path.exists():
        images = np.load("images.npy", mmap_mode="r")
        fields = {"images": NDArrayField(images.dtype, images.shape[1:]), "labels": IntField()}
        DatasetWriter(str(path), fields, num_workers=settings["threads"]).from_indexed_dataset(Indexed(images))
    to_torch = [ToTensor()] if device.type == "cpu" else [ToTensor(), ToDevice(device)]
    preprocess = Preprocess(
        settings["size"], settings["mean"], settings["std"], settings["streamed"], settings["threads"]
    )
    loader = Loader(
        str(path),
        batch_size=settings["batch_size"],
        num_workers=settings["threads"],
        order=OrderOption.RANDOM,
        os_cache=True,
        batches_ahead=BATCHES_AHEAD,
        pipelines={
            "images": [NDArrayField.get_decoder_class(None)(), preprocess, *to_torch],
            "labels": [IntField.get_decoder_class(None)(), *to_torch],
        },
    )
    # FFCV 1.0.2's own argument for this does not work: it calls the instance that it takes.
    loader.traversal_order = LongEpochs(loader)
    loader.first_traversal_order = loader.next_traversal_order()
    while True:
        for images, labels in loader:
            yield images.half() if settings["half"] else images, labels.flatten()


def rate(stream: Iterator[tuple[torch.Tensor, torch.Tensor]], seconds: float) -> float:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    # What an idle loader has ready: its queue, and one batch that waits for a place there.
    for _ in range(BATCHES_AHEAD + 1):
        next(stream)
    synchronize()
    images, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        images += len(next(stream)[1])
    synchronize()
    return images / (perf_counter() - start)


def main() -> None:
    # Whatever libraries print goes to stderr: stdout is for answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    def fail(error: threading.ExceptHookArgs) -> None:
        sys.__excepthook__(error.exc_type, error.exc_value, error.exc_traceback)
        sys.stderr.flush()
        os._exit(1)

    # FFCV's loader would wait forever for a failed thread.
    threading.excepthook = fail
    stream = batches(json.loads(sys.argv[1]))
    next(stream)
    answer(True)
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        if request == "rate":
            answer(rate(stream, *arguments))
        else:
            images, labels = next(stream)
            np.savez("ffcv.npz", images=images.cpu(), labels=labels.cpu())
            answer("ffcv.npz")
    # Skips numba's clean-up, in which TBB would wait forever for the threads of an idle loader.
    os._exit(0)


if __name__ == "__main__":
    main()
