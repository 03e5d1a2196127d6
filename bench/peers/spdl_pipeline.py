"""SPDL: a pipeline of stages in threads (its documentation, «Building and running Pipeline»).

Each stage takes a whole batch: of single images the interpreter's lock leaves little to the second thread.
"""

import torch
from spdl.pipeline import PipelineBuilder

from .whole_batches import Preprocess
from .work import Shuffled, Stream, Work, to_device


def stream(work: Work) -> Stream:
    images, preprocess = torch.from_numpy(work.images), Preprocess(work.on_cpu(), work.shape[1:])

    def make(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.set_num_threads(1)  # of this thread: parallel are the batches
        return preprocess(images.index_select(0, indices), indices), indices

    pipeline = (
        PipelineBuilder()
        .add_source(Shuffled(work))
        .pipe(make, concurrency=work.threads, output_order="input")
        .add_sink(2)
        .build(num_threads=work.threads)
    )
    pipeline.start()
    return Stream(to_device(pipeline.get_iterator(), work), ahead=work.threads + 3)
