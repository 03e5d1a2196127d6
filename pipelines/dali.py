"""The GPU engine: decode → equalize → resize or warp → normalize as a DALI graph.

The graph takes its device as an argument. On the CPU, where `inflate` does not exist, it gets decoded images
and every later operator is the same: that is how it is tested without a GPU.
"""

from collections.abc import Callable, Sequence
from math import gcd

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import OperatorConcurrency
from nvidia.dali.tensors import TensorListCPU

from .pixels import PixelSpec

# Images in one DALI sample, to pay DALI's cost a sample once a block. On an H100 a batch of 512 takes 2.3 to 2.5 ms
# in blocks of 16 to 512 and 3.2 ms in single images; on the CPU 64 are as fast as 1.
BLOCK = 64
# Images that `fn.resize` takes at once on a GPU. DALI's default of 32 counts images, not blocks, and would set up and
# launch its kernels 16 times for a batch of 512 (`resize_op_impl_gpu.h`). Each needs scratch for one pass: 12.5 kB
# from 28×28 to 112×112. Not measured on a GPU.
RESIZE_MINIBATCH = 4096
# Batches that DALI makes ahead.
QUEUE = 2


def preprocess(records: DataNode, chunks: DataNode | None, matrices: DataNode | None, pixels: PixelSpec) -> DataNode:
    """Blocks of records or of decoded images → normalized FCHW blocks, on the device of `records`.

    `chunks` gives the bytes of each LZ4 record of a block; None says that `records` are images, FHWC uint8.
    `matrices` (F, 2, 3) a block, as `affine.matrices` makes them, turn the resize into a warp.

    On a GPU, `fn.equalize` computes in double what OpenCV computes in float32: 119 of the 306,936 pairs of count and
    total that 28×28 pixels allow round to the next grey level. `fn.decoders.inflate` does not read nvCOMP's statuses:
    a damaged record is no error there, so that the shards must be verified before.
    """
    images, size = records, (pixels.size, pixels.size)
    if chunks is not None:
        images = fn.decoders.inflate(
            records, chunk_sizes=chunks, shape=(*pixels.shape, 1), layout="HWC", sequence_axis_name="F"
        )
    if pixels.equalize:
        images = fn.equalize(images)
    if matrices is None:
        images = fn.resize(
            images,
            size=size,
            interp_type=types.INTERP_LINEAR,
            antialias=False,
            minibatch_size=RESIZE_MINIBATCH,
            dtype=types.FLOAT,
        )
    else:
        images = fn.warp_affine(
            images,
            matrix=fn.per_frame(matrices),
            size=size,
            interp_type=types.INTERP_LINEAR,
            fill_value=0,
            dtype=types.FLOAT,
        )
    return fn.crop_mirror_normalize(
        images,
        mean=[255 * pixels.mean],
        std=[255 * pixels.std],
        output_layout="FCHW",
        dtype=types.FLOAT16 if pixels.dtype == "float16" else types.FLOAT,
    )


# The host's work is the bound: with operators of different batches side by side, warped batches of 512 at 112×112
# come at 303,000 img/s on an H200 with 16 cores; with one operator a backend at a time, as by default, at 217,000.
@pipeline_def(exec_dynamic=True, concurrency=OperatorConcurrency.FULL)
def _graph(
    source: Callable, pixels: PixelSpec, on_gpu: bool, compressed: bool, warped: bool
) -> tuple[DataNode, DataNode]:
    layouts = {"labels": "", "records": "" if compressed else "FHWC"}
    if compressed:
        layouts["chunks"] = ""
    if warped:
        layouts["matrices"] = "F**"
    outputs = fn.external_source(source=source, num_outputs=len(layouts), layout=list(layouts.values()), batch=True)
    nodes = dict(zip(layouts, outputs, strict=True))
    if on_gpu:  # chunks and matrices are arguments of operators: those stay on the host
        nodes |= {name: nodes[name].gpu() for name in ("labels", "records")}
    return preprocess(nodes["records"], nodes.get("chunks"), nodes.get("matrices"), pixels), nodes["labels"]


def build(
    source: Callable[[int], tuple],
    pixels: PixelSpec,
    *,
    blocks: int,
    device_id: int | None,
    threads: int,
    compressed: bool,
    warped: bool,
    queue: int = QUEUE,
) -> Pipeline:
    """A built pipeline that makes one batch of `blocks` DALI samples a run; `device_id` None puts it on the CPU.

    `source(i)` gives batch i as (labels, records[, chunks][, matrices]), each one array or its `tensors`, with a row
    for a block of F images: labels (blocks, F) int64; records (blocks, F, H, W, 1) uint8, or (blocks, bytes) uint8
    with chunks (blocks, F) int32 if `compressed`, in which what follows a row's last record is not read; matrices
    (blocks, F, 2, 3) float32 if `warped`. DALI calls it ahead of time, by the depth of its queue, so it is a pure
    function of i.
    """
    pipeline = _graph(
        source,
        pixels,
        device_id is not None,
        compressed,
        warped,
        batch_size=blocks,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=queue,
    )
    pipeline.build()
    return pipeline


def tensors(arrays: Sequence[np.ndarray]) -> tuple[TensorListCPU, ...]:
    """What `source` gives, wrapped without a copy: by the gathering thread, to leave less to the training's."""
    return tuple(TensorListCPU(array) for array in arrays)


def block_size(batch_size: int, most: int = BLOCK) -> int:
    """The most images a block, up to `most`, that divide the batch evenly."""
    return gcd(batch_size, most)


def run(pipeline: Pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """The next batch: images (N, 1, S, S) and labels (N,) int64, zero copy, on the pipeline's device.

    The tensors own DALI's buffers; on a GPU they are ordered on torch's current stream.
    """
    if pipeline.device_id is None:
        outputs = pipeline.run()
    else:
        outputs = pipeline.run(torch.cuda.current_stream(pipeline.device_id))
    images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
    return images.flatten(0, 1), labels.flatten()
