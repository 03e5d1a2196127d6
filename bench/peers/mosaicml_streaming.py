"""MosaicML Streaming: MDS shards on the local disk, read by its StreamingDataset in its StreamingDataLoader."""

import torch
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from .single_images import Preprocess
from .work import Stream, Work, endless, to_device

PREDOWNLOAD = 8  # batches; all files are there


class Images(StreamingDataset):
    def __init__(self, work: Work) -> None:
        super().__init__(
            local=str(work.own), shuffle=True, batch_size=work.batch_size, predownload=PREDOWNLOAD * work.batch_size
        )
        self._preprocess = Preprocess(work)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        row = super().__getitem__(place)
        return torch.from_numpy(self._preprocess(row["image"], row["index"])), row["index"]


def write(work: Work, **_: object) -> None:
    shape = ",".join(map(str, work.shape[1:]))
    with MDSWriter(out=str(work.own), columns={"image": f"ndarray:uint8:{shape}", "index": "int"}) as writer:
        for _ in range(work.repeats):
            for index, image in enumerate(work.images):
                writer.write({"image": image, "index": index})


def stream(work: Work, workers: int, state: dict | None = None) -> Stream:
    loader = StreamingDataLoader(Images(work), batch_size=work.batch_size, num_workers=workers, drop_last=True)
    if state is not None:
        loader.load_state_dict(state)
    return Stream(to_device(endless(loader), work), ahead=2 * workers, state=loader.state_dict)
