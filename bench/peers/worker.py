"""One peer in a process of its own: python -m peers.worker SETTINGS, in the environment that it needs.

SETTINGS is JSON: the fields of `Work`, the peer's `module`, the `options` of its `stream`, and the file of a `state`
or null. Prints {"seconds": …} when its first batch is there, or {"missing": …}, and then answers each request, a JSON
line on stdin, with a JSON line on stdout.
"""

import json
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .work import Batch, Missing, Stream, Work

# Batches taken before and after a state is saved.
RESUMED_AFTER, RESUMED = 3, 4


class Worker:
    """Answers requests; their names are those of its methods."""

    def __init__(self, work: Work, stream: Stream, first: Batch) -> None:
        self._work, self._stream, self._first = work, stream, first

    def batch(self) -> str:
        """The name of an .npz with the next batch."""
        batch = self._indexed()
        path = self._work.folder / f"batch-{os.getpid()}.npz"
        matrices = {} if batch.matrices is None else {"matrices": batch.matrices}
        np.savez(path, images=batch.images.cpu(), indices=batch.indices.cpu(), **matrices)
        return str(path)

    def rate(self, seconds: float) -> dict[str, float]:
        """Images/s over at least `seconds`, after what was ready and a quarter of that time; and all images taken."""
        self._first = None
        ready = sum(len(self._next().images) for _ in range(self._stream.ahead))
        warm_up, _ = self._run(seconds / 4)
        images, rate = self._run(seconds)
        return {"images_per_second": rate, "images": ready + warm_up + images}

    def resume(self) -> tuple[str, list[int]]:
        """Saves the state in mid-epoch: its file, and the indices of the next batches."""
        for _ in range(RESUMED_AFTER):
            self._indexed()
        path = self._work.folder / f"state-{os.getpid()}.pickle"
        path.write_bytes(pickle.dumps(self._stream.state()))
        return str(path), self.indices()

    def indices(self) -> list[int]:
        """Of the next batches, among which is the first one."""
        return torch.cat([self._indexed().indices.cpu() for _ in range(RESUMED)]).tolist()

    def train(self, config: dict[str, Any], seconds: float, pairs: int) -> list[tuple[float, float]]:
        """Pairs of images/s of training, with one resident batch and with this peer as the loader."""
        from .training import train  # which takes 4 s and 220 MB

        return train(self._work, self._stream, config, seconds, pairs)

    def _indexed(self) -> Batch:
        batch, self._first = self._first or self._next(), None
        return self._stream.planned(batch) if self._stream.planned else batch

    def _next(self) -> Batch:
        return next(self._stream.batches)

    def _run(self, seconds: float) -> tuple[int, float]:
        """Images, and images/s."""
        self._synchronize()
        images, start = 0, perf_counter()
        while perf_counter() - start < seconds:
            images += len(self._next().images)
        self._synchronize()
        return images, images / (perf_counter() - start)

    def _synchronize(self) -> None:
        if self._work.on_gpu:
            torch.cuda.synchronize(self._work.device)


def disk_bytes(path: Path) -> int:
    """Of a file, of all in a folder, or 0 if there is none."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _write(peer: ModuleType, work: Work, options: dict[str, Any]) -> None:
    """In another process, so that what it takes is not counted. Raises RuntimeError if that fails."""
    writer = multiprocessing.get_context("fork").Process(target=peer.write, args=(work,), kwargs=options)
    writer.start()
    writer.join()
    if writer.exitcode:
        shutil.rmtree(work.own, ignore_errors=True)
        work.own.unlink(missing_ok=True)
        raise RuntimeError("its files could not be written")


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

    threading.excepthook = fail  # some loaders would wait forever for a failed thread
    settings = json.loads(sys.argv[1])
    module, options, state = (settings.pop(key) for key in ("module", "options", "state"))
    work = Work(**{**settings, "folder": Path(settings["folder"]), "shards": Path(settings["shards"])})
    resumed = {"state": pickle.loads(Path(state).read_bytes())} if state else {}
    torch.set_num_threads(work.threads)
    try:
        peer = import_module(f"peers.{module}")
        if hasattr(peer, "write") and not work.own.exists():
            _write(peer, work, options)
        start = perf_counter()
        stream = peer.stream(work, **options, **resumed)
        first = next(stream.batches)
    except Missing as reason:
        answer({"missing": str(reason)})
        return
    seconds, resumable = perf_counter() - start, stream.state is not None
    answer({"seconds": seconds, "resumable": resumable, "disk_bytes": disk_bytes(work.own)})
    worker = Worker(work, stream, first)
    for name, *arguments in map(json.loads, sys.stdin):
        answer(getattr(worker, name)(*arguments))
    # Skips clean-up, in which some wait forever for the threads of an idle loader.
    os._exit(0)


if __name__ == "__main__":
    main()
