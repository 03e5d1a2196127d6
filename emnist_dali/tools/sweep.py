"""A search of a recipe's settings by validation accuracy: Optuna's trials, each a run.

Any number of processes, on one machine or many, share a sweep through its database. Complete and pruned trials count;
one whose process was stopped or killed is resumed by a new trial.
"""

import json
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import torch

from ..config import Config, Run, from_dict
from ..core.errors import InUseError, UserError
from ..core.files import (
    check_output,
    is_folder_name,
    is_plain,
    printable,
    read_json,
    reason,
    write_json,
    write_output,
)
from ..core.locks import LOCK, Lock
from ..core.progress import progress, say
from ..data.prepare import prepare
from ..data.shards import Shards
from ..loading.validation import validation_images
from ..reports.sweep_report import TrialRow, sweep_page
from ..runtime import resolve
from ..training import resume
from ..training.session import train
from ..training.trainer import DivergedError
from .search_space import Space, describe, dimensions
from .sweep_database import GRACE, SweepDatabase, heartbeats, open_database

if TYPE_CHECKING:
    from optuna import Trial

# Seconds to wait while another process writes the results.
WRITING = 30

TOP = 10  # lines of the table


@dataclass(frozen=True)
class _Sweep:
    database: SweepDatabase
    trials: int
    out: Path

    @property
    def space(self) -> Space:
        return self.database.space


def sweep(
    config: Config,
    trials: int,
    space: Sequence[str],
    storage: str,
    name: str,
    out: Path,
    given: Collection[str] = (),
) -> str:
    """Runs what is missing of `trials` trials of the sweep `name` in the database `storage`; returns a summary.

    Searches the dimensions `space`, or if that is empty all that the options `given` do not fix; the other settings
    are those of `config`, which itself is the first trial. Each trial is a run folder in `out`, where sweep.html and
    best.json are written at the end; the test split is not read. Raises UserError if optuna is missing, for an
    unknown dimension, a name that would lead out of runs/, no validation images, a database that cannot be used or
    is damaged, files in `out` that are not this sweep's, and a sweep that was begun with other data or settings;
    SystemExit after SIGTERM, SIGHUP or SIGINT.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"optuna could not be imported ({error}); pip install 'emnist-dali[sweep]'.") from error
    folder = f"sweep-{name}"
    if not is_plain(name) or (out == Path("runs") / folder and not is_folder_name(folder)):
        raise UserError(
            f"The name {ascii(name)[:80]} cannot name a folder; choose another --name, of letters and digits."
        )
    searched = dimensions(space, given)
    shards = Shards(prepare(config.data.split, config.data.source, config.data.data_dir), "train")
    if not len(validation_images(shards, config.data, config.training.seed)[2]):
        raise UserError("A sweep ranks by validation accuracy, but no image is held out; raise data.val_fraction.")
    config = config.override({"wandb_group": config.run.wandb_group or name})
    if config.run.amp == "native":  # workers with other processors must not train otherwise
        config = config.override({"amp": resolve(config).run.amp})
    tried = Space(config, searched, tuple(sorted({"lr", "weight_decay"} & set(given))))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(), _resumable():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # sent here, without `optimize`
        search = _Sweep(open_database(storage, name, tried), trials, out)
        _begin(search, shards.manifest.fingerprint)
        _run_trials(search)
        with _locked(out):  # the last process's files hold the results of all
            return _write_results(search)


@contextmanager
def _resumable() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C end in SystemExit, after a line on how to resume; training has its own handlers."""
    # Python lets only the main thread have handlers; nohup ignores SIGHUP.
    main = threading.current_thread() is threading.main_thread()
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if main and hasattr(signal, name)]
    signals = [signum for signum in signals if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, lambda signum, frame: sys.exit(128 + signum)) for signum in signals}
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as end:
        with suppress(OSError):  # the terminal may be gone
            say("The sweep has not finished; the same command resumes it.")
        raise SystemExit(_exit_code(end)) from end
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _exit_code(end: BaseException) -> int:
    return 128 + signal.SIGINT if isinstance(end, KeyboardInterrupt) else end.code


# The start.


def _begin(search: _Sweep, fingerprint: str) -> None:
    """Records what a new sweep is of, once; raises UserError as `_check`."""
    space = search.space
    identity = {
        "recipe": space.config.recipe,
        "data fingerprint": fingerprint,
        "space": space.searched,
        "given": space.fixed,
        "image sizes": space.sizes,
        **{name: value for part in space.config.identity().values() for name, value in part.items()},
    }
    identity = json.loads(json.dumps(identity))
    _check(search, identity)
    with _locked(search.out):
        _check(search, identity)  # another process may have been faster
        search.database.begin(identity)


def _check(search: _Sweep, identity: dict[str, Any]) -> None:
    """UserError if the sweep is of other data, settings or dimensions, or files in `out` are not its own."""
    database, out = search.database, search.out
    folders = [path.name for path in out.glob("trial-*")]  # before the trials: each of ours is older than its folder
    before = database.identity()
    if before is not None and before != identity:
        paths = {name: f"{part}.{name}" for part, names in search.space.config.identity().items() for name in names}
        changed = [
            printable(f"{paths.get(name, name):.80} is {identity.get(name)} and was {str(before.get(name))[:80]}")
            for name in {**identity, **before}
            if identity.get(name) != before.get(name)
        ]
        more = f"; {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"The sweep {database.study.study_name} in {database.address} has other settings: "
            f"{'; '.join(changed[:5])}{more}; restore them or choose another --name."
        )
    trials = database.trials()
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out} is not a folder; choose another --out.")
    if foreign := set(folders) - {trial.user_attrs.get("folder") for trial in trials}:
        raise _foreign(out / min(foreign))
    _check_results(search)


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{printable(str(path))} is not a trial of this sweep; choose another --out, or move such folders elsewhere."
    )


def _check_results(search: _Sweep) -> None:
    """UserError if sweep.html or best.json would replace a file that this sweep did not write."""
    check_output(search.out / "sweep.html")
    path = search.out / "best.json"
    if not os.path.lexists(path):
        return
    best = None
    with suppress(UserError, OSError):
        # Editing the file breaks its sha256; without one it may be anybody's.
        content = read_json(path)
        if '"sha256": ' in path.read_text(encoding="utf-8"):
            best = from_dict(content).identity()
    complete = [trial for trial in search.database.trials() if trial.state.name == "COMPLETE"]
    if not any(search.space.apply(trial.params).identity() == best for trial in complete):
        raise UserError(
            f"{path} was not written by this sweep, or was edited; choose another --out, or move it elsewhere."
        )


def _locked(out: Path) -> Lock:
    """The lock of the folder, which is created; UserError if it cannot be, or if another process keeps the lock."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} could not be created ({error.strerror}); choose another --out.") from error
    deadline = monotonic() + WRITING
    while monotonic() < deadline:
        with suppress(InUseError):
            return Lock(out / LOCK, out)
        sleep(0.2)
    return Lock(out / LOCK, out)


# The search.


def _run_trials(search: _Sweep) -> None:
    """Until all trials count, or the last of them are running in other processes."""
    waited, done = 0, _count(search)[0]
    with progress(description="sweep", total=search.trials, initial=done, unit=" trials") as bar:
        while True:
            search.database.requeue_lost()
            before, (done, running) = done, _count(search)
            bar.update(done - before)
            if done >= search.trials:
                return
            if done + running < search.trials:
                _run_trial(search)
                waited = 0
            elif waited <= GRACE:
                if not waited:
                    say(f"Waiting up to {GRACE} s for the last trials: other processes run them, or have died.")
                sleep(1)
                waited += 1
            else:
                return


def _count(search: _Sweep) -> tuple[int, int]:
    """Trials that count, of all processes, and those that run."""
    states = Counter(trial.state.name for trial in search.database.trials())
    return states["COMPLETE"] + states["PRUNED"], states["RUNNING"]


def _run_trial(search: _Sweep) -> None:
    """Asks for a trial, trains it and tells the outcome, unless another process has taken the trial over.

    `Study.optimize` would print a traceback for each heartbeat that fails, and fail itself after a trial that was
    taken over.
    """
    from optuna import TrialPruned

    database = search.database
    trial = database.ask()
    try:
        with heartbeats(database.storage, trial._trial_id):
            accuracy = _accuracy(search, trial)
        held = database.tell(trial, "FAIL") if isnan(accuracy) else database.tell(trial, "COMPLETE", accuracy)
    except TrialPruned:
        held = database.tell(trial, "PRUNED")
    except (SystemExit, KeyboardInterrupt) as end:
        with suppress(UserError):  # if the database is gone as well, others find the trial by its heartbeat
            if database.tell(trial, "FAIL"):
                database.requeue(trial)
        raise SystemExit(_exit_code(end)) from end
    except Exception:
        if held := database.tell(trial, "FAIL"):
            raise
    if not held:
        say(f"Trial {trial.number} is dropped: another process has taken it over.")


def _accuracy(search: _Sweep, trial: "Trial") -> float:
    """A trial's best validation accuracy; nan, with which it does not count, if other processes were faster."""
    # Two processes may have asked for the last one at once: the sweep's are those with the lowest numbers.
    trials = search.database.trials()
    if sum(other.state.name != "FAIL" for other in trials[: trial.number]) >= search.trials:
        return nan
    new = f"trial-{trial.number:04d}"
    inherited = trials[trial.number].user_attrs.get("folder")  # of the process that had the trial before
    if inherited:
        try:
            return _train(search, trial, inherited)
        except InUseError as error:
            if inherited == new or not search.database.is_held(trial):
                raise
            # That process is suspended: it still has the folder, but no longer the trial.
            say(f"Trial {trial.number} restarts in {new}: {error}")
    if os.path.lexists(search.out / new):
        raise _foreign(search.out / new)
    search.database.assign_folder(trial, new)
    return _train(search, trial, new)


def _train(search: _Sweep, trial: "Trial", folder: str) -> float:
    """The best validation accuracy of the run in `folder`, which is resumed if it has begun."""
    from optuna import TrialPruned

    config = search.space.apply(trial.params).override({"out": str(search.out / folder)})
    say(f"Trial {trial.number}: {describe(config)}.")

    def after_epoch(epochs_done: int, accuracy: float | None) -> None:
        # Optuna's steps count from 0.
        if search.database.report(trial, epochs_done - 1, accuracy) and epochs_done < config.training.epochs:
            say(f"Trial {trial.number} is pruned: below the median of the others after epoch {epochs_done}.")
            raise TrialPruned

    torch.compiler.reset()  # torch stops compiling a function after its eighth version
    try:
        # `force`: a trial may be resumed with another number of threads.
        run = train(config, _checkpoint(config), force=True, test=False, after_epoch=after_epoch)
    except (DivergedError, torch.OutOfMemoryError) as error:
        say(f"Trial {trial.number} is abandoned: {reason(error)}")
        raise TrialPruned from error
    return max(entry["val_accuracy"] for entry in run.entries() if entry["kind"] == "epoch")


def _checkpoint(config: Config) -> dict[str, Any] | None:
    """The checkpoint to resume from in the trial's folder; None if there is none with these settings."""
    path = resume.find("auto", config.run.out)
    if not path:
        return None
    requested, state = resume.load(path, None, {})
    return state if requested.identity() == config.identity() else None


# The results.


def _write_results(search: _Sweep) -> str:
    """Writes sweep.html and best.json of the trials so far; returns the table and the files as text."""
    out, space, trials = search.out, search.space, search.database.trials()
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    # «COMPLETE» sorts before «PRUNED».
    done.sort(key=lambda trial: (trial.state.name, -trial.value if trial.value is not None else 0.0))
    rows = [
        TrialRow(
            number=trial.number,
            accuracy=f"{100 * trial.value:.2f} %" if trial.value is not None else "",
            state=trial.state.name.lower(),
            seconds=f"{trial.duration.total_seconds():,.0f}",
            settings=describe(space.apply(trial.params)),
            folder=trial.user_attrs["folder"],
        )
        for trial in done
    ]
    lines = ["trial  accuracy  state     seconds  settings"]
    for row in rows[:TOP]:
        lines.append(f"{row.number:>5}  {row.accuracy:>8}  {row.state:<8}  {row.seconds:>7}  {row.settings}")
    if running := sum(trial.state.name == "RUNNING" for trial in trials):
        lines.append(f"{running} more are running in other processes, the last of which rewrites the page.")
    if not done or done[0].state.name != "COMPLETE":
        return "\n".join([*lines, "No trial has finished yet."])
    best = space.apply(done[0].params)
    best = replace(best, run=replace(best.run, out=None, track=(), wandb=Run().wandb, wandb_group=None))
    _check_results(search)
    write_output(out / "sweep.html", sweep_page(search.database.snapshot(trials), rows, search.trials))
    write_json(out / "best.json", best.to_dict())
    top = rows[0]
    lines.append(
        f"Best of {len(done)}: trial {top.number}, validation accuracy {top.accuracy} with {top.settings}.\n"
        f"{out / 'sweep.html'} shows the trials; `emnist-dali train --recipe {out / 'best.json'}` trains the best."
    )
    return "\n".join(lines)
