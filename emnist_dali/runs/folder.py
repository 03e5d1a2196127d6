"""The folder of a run: settings, environment, metrics, checkpoints and predictions."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ..config import Config, from_dict
from ..core import distributed
from ..core.csv_tables import replace_table
from ..core.errors import UserError
from ..core.files import read_json, remove_temporaries, write_atomic, write_json
from ..core.locks import LOCK, Lock
from ..core.machine import environment
from . import schema
from .checkpoint import load_weights, save_state
from .file_names import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    FILES,
    LAST,
    METRICS,
    METRICS_TABLE,
    ROBUSTNESS,
    STARTING,
    TRACKERS,
    is_run,
)
from .group import enclosing_group, is_group, is_member, runs_of
from .predictions import Predictions, write_predictions


def check_can_create(out: str | None) -> None:
    """Raises UserError if a run cannot be created in `out`; to be called before any work is done."""
    if not out:
        return
    path = Path(out)
    if is_run(path):
        raise UserError(_exists(path))
    if is_group(path):
        raise UserError(f"{path} is a group of runs; go on with --resume {path}, or choose another run.out.")
    if (outer := enclosing_group(path)) and not is_member(path, outer):
        raise UserError(f"{outer} is a group of runs, which {path} is none of; choose another run.out.")
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{path} could not be created ({os.strerror(errno.EACCES)}); choose another run.out.")
    # What a killed start left may be replaced; other files are not ours.
    if not (path / STARTING).exists() and (existing := [name for name in FILES if os.path.lexists(path / name)]):
        raise UserError(f"{path} contains {existing[0]} but no run; choose another run.out, or move {existing[0]}.")


class RunFolder:
    """The files of one run, which `train` returns.

    `path` is the folder, `best` the weights with the best validation accuracy, `last` the newest checkpoint,
    `robustness` the table of `evaluate --robustness`. Only rank 0 writes; it holds the folder's lock from `create` or
    `lock` to `close`.

    >>> from emnist_dali.runs import RunFolder
    >>> run = RunFolder("runs/first")
    >>> run.config().training.epochs
    1
    >>> [entry["kind"] for entry in run.entries()]
    ['epoch', 'test', 'unseen']
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best = self.path / BEST
        self.last = self.path / LAST
        self.robustness = self.path / ROBUSTNESS
        self._entries: list[dict[str, Any]] = []  # goes into every checkpoint
        self._lock: Lock | None = None
        self._undo: Callable[[], None] | None = None  # removes what `create` made, until the run has begun

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """Creates and locks `config.run.out`, or runs/<split>-<recipe>-<time> if that is None.

        Raises UserError if the folder contains a run, or files with the names that a run writes.
        """
        path, folders = distributed.broadcast_from_main(lambda: _create(config))
        run = cls(path)
        if distributed.is_main():
            lock = run.path / LOCK
            new = [] if os.path.lexists(lock) else [lock]
            run._lock = Lock(lock, run.path)
            try:
                run._undo = partial(_remove, new, folders)
                check_can_create(config.run.out)  # again, where no other process begins a run
                # Only what is not there now will be this start's.
                new += [path for name in (*FILES, LAST, STARTING) if not os.path.lexists(path := run.path / name)]
                (run.path / STARTING).touch()
                run.last.parent.mkdir(exist_ok=True)
                (run.path / METRICS).unlink(missing_ok=True)  # from a start that was killed
            except OSError as error:
                run.close()
                raise UserError(
                    f"{run.path} could not be created ({error.strerror}); choose another run.out."
                ) from error
            except UserError:
                run.close()
                raise
        return run

    def lock(self) -> None:
        """Locks a run that is to be resumed; raises InUseError if another process is training it."""
        if distributed.is_main():
            self._lock = Lock(self.path / LOCK, self.path)
            for folder in (self.path, self.last.parent):
                remove_temporaries(folder)

    def close(self) -> None:
        """Releases the lock; of a run that has not begun it leaves only what was there before."""
        if self._undo:  # before another process may begin a run here
            self._undo()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, config: Config, state: dict[str, Any]) -> None:
        """Writes the first checkpoint, the environment and the settings: from here on the run can be resumed."""
        self.save_checkpoint(state)
        if distributed.is_main():
            write_json(self.path / ENVIRONMENT, environment())
            self._undo = None
            write_json(self.path / CONFIG, config.to_dict())
            (self.path / STARTING).unlink(missing_ok=True)

    def rewind(self, config: Config, state: dict[str, Any]) -> None:
        """Returns to the checkpoint `state`: entries that were logged after it are removed."""
        self._entries = [entry for entry in state["log"] if entry["kind"] in ("compile", "epoch")]
        if not distributed.is_main():
            return
        before = self.environment()
        tested = len(self._entries) < len(state["log"])
        resumed = {"step": state["step"], "test_was_read": tested, **environment()}
        write_atomic(self.path / METRICS, "".join(map(schema.to_line, self._entries)).encode())
        self._write_table()
        write_json(self.path / CONFIG, config.to_dict())
        write_json(self.path / ENVIRONMENT, {**before, "resumed": [*before.get("resumed", []), resumed]})

    def config(self) -> Config:
        """The settings, resolved; raises UserError if config.json is missing or damaged."""
        path = self.path / CONFIG
        if not path.exists() and is_group(self.path):
            raise UserError(f"{self.path} is a group of runs; name one of them: {runs_of(self.path)[0]}.")
        return from_dict(read_json(path, "choose another run"), str(path))

    def environment(self) -> dict[str, Any]:
        """The machine, versions and command that the run started with; `resumed` lists those it was resumed with."""
        return schema.read_env(self.path / ENVIRONMENT)

    def entries(self) -> list[dict[str, Any]]:
        """The entries of metrics.jsonl, [] if it is missing; raises UserError if it is damaged."""
        return schema.read_entries(self.path / METRICS)

    def log(self, *entries: dict[str, Any]) -> None:
        """Appends to metrics.jsonl, and writes metrics.csv anew: the entries of the epochs."""
        self._entries += entries
        if distributed.is_main():
            path = self.path / METRICS
            size = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8", newline="\n") as file:
                    file.write("".join(map(schema.to_line, entries)))
            except OSError as error:
                with suppress(OSError):
                    os.truncate(path, size)  # leaves no partial line
                raise UserError(f"{path} could not be written ({error.strerror}); free up space there.") from error
            self._write_table()

    def _write_table(self) -> None:
        epochs = [entry for entry in self._entries if entry["kind"] == "epoch"]
        rows = [{name: value for name, value in entry.items() if name != "kind"} for entry in epochs]
        replace_table(self.path / METRICS_TABLE, "epochs_done", rows)

    def predictions_path(self, part: str) -> Path:
        """The predictions for `part`, test or unseen; see `read_predictions`."""
        return self.path / f"predictions-{part}.safetensors"

    def save_predictions(self, part: str, predictions: Predictions) -> None:
        if distributed.is_main():
            write_predictions(self.predictions_path(part), predictions)

    def best_step(self) -> float:
        """The step of the best weights, infinite if there are none."""
        return load_weights(self.best)[1].get("step", math.inf) if self.best.exists() else math.inf

    def save_checkpoint(self, state: dict[str, Any], keep: int = 1) -> None:
        """Replaces the last checkpoint; if `keep` > 1, also keeps the newest `keep`, each as step-<step>.pt."""
        if not distributed.is_main():
            return
        save_state(self.last, {**state, "log": self._entries})
        if keep > 1:
            kept = self.last.with_name(f"step-{state['step']:08d}.pt")
            try:
                kept.unlink(missing_ok=True)
                os.link(self.last, kept)
                steps = sorted(self.last.parent.glob(f"step-{'[0-9]' * 8}.pt"))  # no other file is touched
                newer = steps.index(kept) + 1
                # Later steps are from before a rewind.
                for path in steps[newer:] + steps[: max(newer - keep, 0)]:
                    path.unlink()
            except OSError as error:
                raise UserError(f"{kept} could not be linked ({error.strerror}); set run.keep to 1.") from error


def _create(config: Config) -> tuple[Path, list[Path]]:
    """The folder, `run.out` or a new one that no other process has, and which were missing, from it upwards."""
    name = f"{config.data.split}-{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    path = Path(config.run.out) if config.run.out else Path("runs") / name
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        if config.run.out:
            check_can_create(config.run.out)
            path.mkdir(parents=True, exist_ok=True)
            return path, missing
        path.parent.mkdir(exist_ok=True)
        for i in count(2):
            try:
                path.mkdir()  # fails if another process was faster
                return path, [path, *missing[1:]]
            except FileExistsError:
                path = path.with_name(f"{name}-{i}")
    except OSError as error:
        raise UserError(f"{path} could not be created ({error.strerror}); choose another run.out.") from error


def _remove(new: Sequence[Path], folders: Sequence[Path]) -> None:
    """Removes what a start has made: files and trackers' folders by name, other folders only if empty then."""
    for path in new:
        if path.name in TRACKERS:  # theirs from the first file on, under names of their own
            shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()
    checkpoints = [path for path in new if path.name == CHECKPOINTS]
    with suppress(OSError):
        for folder in (*checkpoints, *folders):
            folder.rmdir()


def _exists(path: Path) -> str:
    return f"{path} already contains a run; resume it with --resume {path}, choose another run.out, or remove it."
