"""runs/<name>/: config.json, env.json, metrics.jsonl, checkpoints/."""

import errno
import math
import os
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..core import distributed, tensor_files

from . import schema
from .checkpoint import load_weights, save_state
from ..config import Config, from_dict
from ..core.errors import UserError
from ..core.files import printable, read_json, remove_temporaries, write_json, write_whole
from ..core.machine import environment
from ..core.locks import LOCK, Lock
from .predictions import Predictions, write_predictions

CONFIG, ENVIRONMENT, METRICS, LAST = "config.json", "env.json", "metrics.jsonl", "checkpoints/last.pt"
REPORT, TRACE = "report.html", "trace.json.gz"
# What a run writes into its folder: nobody else's files of these names may be there when it begins.
FILES = (
    CONFIG, ENVIRONMENT, METRICS, "checkpoints", "predictions-test.safetensors", "predictions-unseen.safetensors",
    REPORT, TRACE, "wandb",
)  # fmt: skip


def is_run(path: Path) -> bool:
    """Whether a run was started in `path`; it has a checkpoint then."""
    return (path / CONFIG).exists()


def check_out(out: str | None) -> None:
    """UserError where a run in `out` could not begin, before any work is done for it."""
    if not out:
        return
    path = Path(out)
    if is_run(path):
        raise UserError(_already(path))
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{path} could not be made ({os.strerror(errno.EACCES)}); name another --out.")
    # A start that was killed has left its lock; without one these are somebody else's.
    if not (path / LOCK).exists() and (taken := [name for name in FILES if os.path.lexists(path / name)]):
        raise UserError(f"{path} holds {taken[0]}, and no run; name another --out, or move that elsewhere.")


class RunFolder:
    """The files of one run; only rank 0 writes them, and holds the folder's lock from `make` or `take` to `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "checkpoints" / "best.safetensors"
        self.last = path / LAST
        self.lines: list[dict[str, Any]] = []
        self._lock: Lock | None = None

    @classmethod
    def make(cls, config: Config) -> "RunFolder":
        """A folder at `config.run.out`, or a new one runs/<split>-<recipe>-<time>.

        UserError where a run is, or files of the names that a run writes.
        """
        run = cls(Path(distributed.broadcast_from_main(lambda: _made(config))))
        if distributed.is_main():
            run._lock = Lock(run.path / LOCK, run.path)
            try:
                if is_run(run.path):  # another process was quicker
                    raise UserError(_already(run.path))
                run.last.parent.mkdir(exist_ok=True)
                (run.path / METRICS).unlink(missing_ok=True)  # of a start that was killed
            except OSError as error:
                run.close()
                raise UserError(f"{run.path} could not be made ({error.strerror}); name another --out.") from error
            except UserError:
                run.close()
                raise
        return run

    def take(self) -> None:
        """The lock of a run that is to be gone on with; InUseError where another process trains it."""
        if distributed.is_main():
            self._lock = Lock(self.path / LOCK, self.path)
            for folder in (self.path, self.last.parent):
                remove_temporaries(folder)

    def close(self) -> None:
        """Lets others write here."""
        if self._lock:
            self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, config: Config, state: dict[str, Any]) -> None:
        """From here on the folder holds a run that can be gone on with."""
        self.save(state)
        if distributed.is_main():
            write_json(self.path / ENVIRONMENT, environment())
            write_json(self.path / CONFIG, config.to_dict())

    def go_on(self, config: Config, state: dict[str, Any]) -> None:
        """Back to where a checkpoint was: what came after it is taken out of metrics.jsonl."""
        self.lines = [line for line in state["log"] if line["kind"] in ("compile", "epoch")]
        if not distributed.is_main():
            return
        env = self.environment()
        resumed = {"step": state["step"], "test_was_read": len(self.lines) < len(state["log"]), **environment()}
        write_whole(self.path / METRICS, "".join(map(_line, self.lines)).encode())
        write_json(self.path / CONFIG, config.to_dict())
        write_json(self.path / ENVIRONMENT, {**env, "resumed": [*env.get("resumed", []), resumed]})

    def environment(self) -> dict[str, Any]:
        """What `environment` gave when the run began, and under `resumed` when it went on."""
        return schema.read_env(self.path / ENVIRONMENT)

    def save_predictions(self, part: str, predictions: Predictions) -> None:
        """`predictions-<part>.safetensors`, so that nobody has to read the test images again."""
        if distributed.is_main():
            write_predictions(self.predictions(part), predictions)

    def predictions(self, part: str) -> Path:
        return self.path / f"predictions-{part}.safetensors"

    def config(self) -> Config:
        path = self.path / CONFIG
        return from_dict(read_json(path, "name another run"), str(path))

    def logged(self) -> list[dict[str, Any]]:
        """The entries of metrics.jsonl, none where it is missing; UserError where it holds something else."""
        return schema.read_entries(self.path / METRICS)

    def log(self, *records: dict[str, Any]) -> None:
        """Appends a line each to metrics.jsonl."""
        self.lines += records
        if distributed.is_main():
            path = self.path / METRICS
            size = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(map(_line, records)))
            except OSError as error:
                with suppress(OSError):
                    os.truncate(path, size)  # half a line is none
                raise UserError(f"{path} could not be written ({error.strerror}); free space there.") from error

    def best_step(self) -> float:
        """The step of the best weights, infinite without any."""
        return load_weights(self.best)[1].get("step", math.inf) if self.best.exists() else math.inf

    def save(self, state: dict[str, Any], keep: int = 1) -> None:
        """Replaces the last checkpoint; the `keep` newest stay under their steps' names where those are several."""
        if not distributed.is_main():
            return
        save_state(self.last, {**state, "log": self.lines})
        if keep > 1:
            kept = self.last.with_name(f"step-{state['step']:08d}.pt")
            try:
                kept.unlink(missing_ok=True)
                os.link(self.last, kept)
                steps = sorted(self.last.parent.glob(f"step-{'[0-9]' * 8}.pt"))  # others are somebody else's
                here = steps.index(kept) + 1
                # Later steps are of a course that was given up.
                for other in steps[here:] + steps[: max(here - keep, 0)]:
                    other.unlink()
            except OSError as error:
                raise UserError(f"{kept} could not be linked ({error.strerror}); take --keep 1.") from error


def _made(config: Config) -> str:
    """The path of the folder: --out, which is made where it is missing, or a new one that no other process has."""
    name = f"{config.data.split}-{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    path = Path(config.run.out) if config.run.out else Path("runs") / name
    try:
        if config.run.out:
            check_out(config.run.out)
            path.mkdir(parents=True, exist_ok=True)
            return str(path)
        path.parent.mkdir(exist_ok=True)
        for i in count(2):
            try:
                path.mkdir()  # fails where another process was quicker
                return str(path)
            except FileExistsError:
                path = path.with_name(f"{name}-{i}")
    except OSError as error:
        raise UserError(f"{path} could not be made ({error.strerror}); name another --out.") from error


def _already(path: Path) -> str:
    return f"{path} already holds a run; go on with it by --resume {path}, name another --out or remove it."


def _line(record: dict[str, Any]) -> str:
    return schema.line(record)
