"""torchdata.nodes: a sampler, a ParallelMapper in processes and a Prefetcher (its documentation, «Migrating to
torchdata.nodes from torch.utils.data»).

As there, what is mapped is a batch of indices, and a worker puts its images together.
"""

import torch
from torch.utils.data import default_collate
from torchdata.nodes import Loader, ParallelMapper, Prefetcher, SamplerWrapper
from torchdata.stateful_dataloader.sampler import BatchSampler, RandomSampler

from .single_images import Preprocess
from .work import Stream, Work, endless, to_device


def stream(work: Work, workers: int, state: dict | None = None) -> Stream:
    images, preprocess = work.images, Preprocess(work)

    def make(indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return default_collate([(torch.from_numpy(preprocess(images[i], i)), i) for i in indices])

    sampler = BatchSampler(RandomSampler(range(len(images))), work.batch_size, drop_last=True)
    node = ParallelMapper(SamplerWrapper(sampler), make, num_workers=workers, method="process")
    loader = Loader(Prefetcher(node, prefetch_factor=2))
    if state is not None:
        loader.load_state_dict(state)
    return Stream(to_device(endless(loader), work), ahead=2 * workers + 2, state=loader.state_dict)
