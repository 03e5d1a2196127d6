"""The GPU engine: decode → equalize → resize or warp → normalize as a DALI graph.

The graph takes its device as an argument. On the CPU, where `inflate` does not exist, it gets decoded images
and every later operator is the same: that is how it is tested without a GPU.
"""

from collections.abc import Callable
from math import gcd

import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from .pixels import PixelSpec

# Images in one DALI sample, to pay DALI's cost a sample once a block. Not measured on a GPU yet; on the CPU 64 are
# as fast as 1.
BLOCK = 64
# Batches that DALI makes ahead.
QUEUE = 2


def preprocess(records: DataNode, chunks: DataNode | None, matrices: DataNode | None, pixels: PixelSpec) -> DataNode:
    """Blocks of records or of decoded images → normalized FCHW blocks, on the device of `records`.

    `chunks` gives the bytes of each LZ4 record of a block; None says that `records` are images, FHWC uint8.
    `matrices` (F, 2, 3) a block, as `affine.matrices` makes them, turn the resize into a warp.
    """
    images, size = records, (pixels.size, pixels.size)
    if chunks is not None:
        images = fn.decoders.inflate(
            records, chunk_sizes=chunks, shape=(*pixels.shape, 1), layout="HWC", sequence_axis_name="F"
        )
    if pixels.equalize:
        images = fn.equalize(images)
    if matrices is None:
        images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=False, dtype=types.FLOAT)
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


@pipeline_def(exec_dynamic=True)
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

    `source(i)` gives batch i as (labels, records[, chunks][, matrices]), each a sequence of arrays, one a block of
    F images: labels (F,) int64; records (F, H, W, 1) uint8, or (bytes,) uint8 with chunks (F,) int32 if `compressed`;
    matrices (F, 2, 3) float32 if `warped`. DALI calls it ahead of time, by the depth of its queue, so it is a pure
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
        outputs = pipeline.run(cuda_stream=torch.cuda.current_stream(pipeline.device_id))
    images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
    return images.flatten(0, 1), labels.flatten()
