"""A peer's process, which stands still but for its turn."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import Peer
from .work import Batch, Missing, Work

_BENCH = Path(__file__).resolve().parents[1]


class Process:
    """`peer` at `work`, from a `state` that another process of it has saved, or from the beginning.

    `first` is seconds from the start of its stream to the first batch, `disk_bytes` 0 if it reads no files. Raises
    Missing, or RuntimeError if it fails.
    """

    def __init__(self, peer: Peer, work: Work, state: str | None = None) -> None:
        settings = {**asdict(work), "module": peer.module, "options": peer.options, "state": state}
        self._log = work.folder / f"{work.name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [_python(peer), "-m", "peers.worker", json.dumps(settings, default=str)],
                cwd=work.folder,
                # NUMBA_NUM_THREADS is the upper limit of what FFCV may request of numba.
                env={**os.environ, "PYTHONPATH": str(_BENCH), "NUMBA_NUM_THREADS": str(work.threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # a group, so that its own processes stand still with it
            )
        try:
            answer = self._receive()
            if "missing" in answer:
                raise Missing(answer["missing"])
        except BaseException:
            self.close()
            raise
        self.first, self.resumable, self.disk_bytes = (answer[key] for key in ("seconds", "resumable", "disk_bytes"))

    def batch(self) -> Batch:
        with np.load(self._request("batch")) as arrays:
            images, indices = (torch.from_numpy(arrays[name]) for name in ("images", "indices"))
            return Batch(images, indices, arrays.get("matrices"))

    def rate(self, seconds: float) -> dict[str, float]:
        """images_per_second, cpu_seconds of 10⁶ images, and memory (bytes, PSS) of the process and its own ones."""
        before = self._cpu_seconds()
        measured = self._request("rate", seconds)
        return {
            "images_per_second": measured["images_per_second"],
            "cpu_seconds": (self._cpu_seconds() - before) / measured["images"] * 1e6,
            "memory": self._sum(lambda process: process.memory_full_info().pss),
        }

    def resume(self) -> tuple[str, list[int]]:
        """The file of a state in mid-epoch, and the indices of the batches after it."""
        return tuple(self._request("resume"))

    def indices(self) -> list[int]:
        """Of the next batches, as many as `resume` gives."""
        return self._request("indices")

    def train(self, config: dict[str, Any], seconds: float, pairs: int) -> list[list[float]]:
        """Pairs of images/s of training, with one resident batch and with this peer as the loader."""
        return self._request("train", config, seconds, pairs)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()
        self._signal(signal.SIGTERM)  # its own, of which some clean up
        with suppress(BrokenPipeError):  # of a request that it did not read
            self._process.stdin.close()
        self._process.stdout.close()

    def _request(self, *request: object) -> Any:
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has ended: `_receive` says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> Any:
        line = self._process.stdout.readline()
        self._signal(signal.SIGSTOP)
        if not line:
            self._signal(signal.SIGCONT)
            code = self._process.wait()
            ended = f"it was ended by {signal.Signals(-code).name}" if code < 0 else ""
            said = f"{self._log.read_text().strip()}\n{ended}".strip()
            raise RuntimeError(said or "it ended without a word")
        return json.loads(line)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _cpu_seconds(self) -> float:
        """Of all that run, and of those that have ended."""
        return self._sum(lambda process: sum(process.cpu_times()[:4]))

    def _sum(self, value: Callable[[Any], float]) -> float:
        """Over the process and its own ones."""
        import psutil  # of the `peers` extra: other stages do without

        process, total = psutil.Process(self._process.pid), 0.0
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # ended meanwhile
                total += value(one)
        return total


def _python(peer: Peer) -> str:
    if peer.environment is None:
        return sys.executable
    python = _BENCH.parent / f".venv-{peer.environment}" / "bin" / "python"
    if not python.exists():
        raise Missing(f"It is not installed; run «bash bench/peers.sh {peer.environment}».")
    return str(python)
