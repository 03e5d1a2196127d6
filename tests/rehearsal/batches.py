"""What each batch of the resident backend asks of a GPU. Runs in a process of `null_gpu.run`."""

import json
import sys
from collections import Counter
from pathlib import Path

from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.loading.loader import Loader
from emnist_dali.recipes import recipe
from emnist_dali.runtime import resolve

from .null_gpu import Kind, Log


def main(folder: str, out: str) -> None:
    """`folder` is a prepared split; writes the calls of each batch of the second epoch, counted by kind."""
    log = Log()
    config = resolve(recipe("fast", "small").override({"backend": "resident", "batch_size": 64}))
    batches = []
    with Loader.from_config(Shards(Path(folder), "train"), config, stats=Stats(0.17, 0.33)) as loader:
        for epoch in range(2):
            loader.start(epoch, 0)
            log.clear()
            batches = []
            for _ in loader:
                calls = [call for call in log.calls() if call.kind is not Kind.ALLOCATE]
                batches.append(Counter(call.kind.name for call in calls))
                log.clear()
    Path(out).write_text(json.dumps(batches))


if __name__ == "__main__":
    main(*sys.argv[1:])
