"""tf.data: indices, shuffled in a buffer of all, in batches that are mapped in parallel and prefetched (TensorFlow's
guide, «Better performance with the tf.data API», which advises to map whole batches)."""

import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch

with suppress(ImportError):
    import triton  # noqa: F401  (torch imports it to train, and after TensorFlow that ends the process: SIGSEGV)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf

from .work import Stream, Work, to_device


def stream(work: Work, state: str | None = None) -> Stream:
    tf.config.set_visible_devices([], "GPU")  # as a loader of PyTorch's batches, it leaves the GPU alone
    tf.config.threading.set_inter_op_parallelism_threads(work.threads)
    tf.config.threading.set_intra_op_parallelism_threads(work.threads)
    dataset = (
        tf.data.Dataset.range(len(work.images))
        .shuffle(len(work.images), reshuffle_each_iteration=True)
        .repeat()
        .batch(work.batch_size, drop_remainder=True)
        .map(_preprocess(work), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    iterator = iter(dataset)
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    if state is not None:
        checkpoint.read(state)

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in iterator:
            yield tuple(torch.from_dlpack(tf.experimental.dlpack.to_dlpack(tensor)) for tensor in batch)

    def save() -> str:
        return checkpoint.write(str(work.folder / f"{work.name}-state"))

    return Stream(to_device(pairs(), work), ahead=2 * work.threads, state=save)


def _preprocess(work: Work):
    images = tf.constant(work.images)
    height, width = work.shape[1:]
    size, scale, shift = work.size, 1 / (255 * work.std), -work.mean / work.std
    transforms = None if work.matrices is None else tf.constant(_of_pixel_centres(work.matrices))

    def preprocess(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.cast(tf.reshape(tf.gather(images, indices), (-1, height * width)), tf.int32)
        levels = tf.gather(_tables(pixels), pixels, batch_dims=1)
        levels = tf.reshape(levels, (-1, height, width, 1))
        if transforms is None:
            levels = tf.image.resize(levels, (size, size))
        else:
            levels = tf.raw_ops.ImageProjectiveTransformV3(
                images=levels,
                transforms=tf.gather(transforms, indices),
                output_shape=(size, size),
                fill_value=0.0,
                interpolation="BILINEAR",
            )
        return tf.reshape(levels * scale + shift, (-1, 1, size, size)), indices

    return preprocess


def _tables(pixels: tf.Tensor) -> tf.Tensor:
    """(n, pixels) int32 → (n, 256) float32: what OpenCV's equalizeHist makes of each grey level of an image."""
    counts = tf.cumsum(tf.cast(tf.math.bincount(pixels, minlength=256, maxlength=256, axis=-1), tf.float32), axis=1)
    total = float(pixels.shape[1])
    first = tf.reduce_min(tf.where(counts == 0, total, counts), axis=1, keepdims=True)
    tables = tf.round(tf.maximum(counts - first, 0) * (255 / (total - first)))
    return tf.where(first == total, tf.range(256.0)[None], tables)


def _of_pixel_centres(matrices: np.ndarray) -> np.ndarray:
    """(n, 2, 3) in the convention of `affine.matrices` → (n, 8) in TensorFlow's, which counts from pixel centres."""
    matrices = matrices.copy()
    matrices[:, :, 2] += matrices[:, :, :2].sum(2) / 2 - 0.5
    return np.pad(matrices.reshape(-1, 6), ((0, 0), (0, 2)))
