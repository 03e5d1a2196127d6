"""Training with a peer as the loader."""

from time import sleep
from typing import Any

import numpy as np
import torch

from emnist_dali.config import from_dict
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.loading import backends
from stage_timers import Setup, TrainingTimer

from .work import Stream, Work

# Seconds in which a stream refills its queue, which it would otherwise do beside the resident batch; two DataLoader
# workers take 0.15 for 512 images at 112×112.
SETTLE = 0.3


def train(
    work: Work, stream: Stream, config: dict[str, Any], seconds: float, pairs: int
) -> list[tuple[float, float]]:
    """Images/s of training as `config` says, with one resident batch and with the stream's batches, in turns."""
    shards, config = Shards(work.shards, "train"), from_dict(config)
    setup = Setup(
        config=config,
        shards=shards,
        stats=Stats(work.mean, work.std),
        batch_size=config.data.batch_size,
        threads=work.threads,
        seconds=seconds,
    )
    labels = torch.from_numpy(shards.labels().astype(np.int64)).to(work.device)
    timer = TrainingTimer(setup, lambda *_: _Backend(stream, labels))
    rates = []
    for _ in range(pairs):
        sleep(SETTLE)
        model = timer.model()
        for _ in range(stream.ahead):  # batches made meanwhile do not count
            next(stream.batches)
        rates.append((model, timer.train()))
    return rates


class _Backend:
    """The stream as a backend of this project's loader."""

    position = 0

    def __init__(self, stream: Stream, labels: torch.Tensor) -> None:
        self._stream, self._labels = stream, labels

    def next(self) -> backends.Batch:
        batch = next(self._stream.batches)
        self.position += 1
        return backends.Batch(batch.images, batch.indices if self._stream.planned else self._labels[batch.indices])

    def close(self) -> None:
        pass
