"""A search of a recipe's settings by validation accuracy: Optuna's trials, each a run of its own.

Any number of processes, on one machine or many, share a sweep by its database. Trials that are complete or pruned
count; one whose process was stopped or killed does not: a new trial with its settings goes on in its run folder. What
the database holds may be damaged, or of somebody else: `_trials` is where it is read.
"""

import html
import json
import os
import re
import signal
import sys
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import Config, Run, from_dict
from ..core.errors import InUseError, UserError
from ..core.files import (
    check_output,
    is_component,
    is_plain,
    masked,
    printable,
    read_json,
    reason,
    write_json,
    write_output,
)
from ..core.locks import LOCK, Lock
from ..core.progress import say
from ..data.prepare import prepare
from ..data.shards import Shards
from ..loading import sampling
from ..reports.html import chart, need_plotly, page, table
from ..training import resume
from ..training.session import train
from ..training.trainer import DivergedError
from .search_space import Space, described, dimensions

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, TrialState

# Trials before the first is pruned.
STARTUP = 4

# Seconds. A process writes a heartbeat while it trains; without one for so long its trial is taken to be lost.
HEARTBEAT, GRACE = 10, 60
# Seconds that a process waits for the SQLite file while others write it; Optuna asks for a trial five times.
LOCKED = 10
# Seconds in which tables are made that several processes make at once.
OPENING = 2
# Seconds that a process waits while another writes the page.
WRITING = 30

TOP = 10  # lines of the table


@dataclass(frozen=True)
class _Search:
    study: "Study"
    storage: "RDBStorage"
    address: str  # of the database, for messages
    trials: int
    space: Space
    out: Path


def sweep(
    config: Config,
    trials: int,
    space: Sequence[str],
    storage: str,
    name: str,
    out: Path,
    given: Collection[str] = (),
) -> str:
    """Runs what is missing of `trials` trials of the sweep `name` in the database `storage`; what to tell people.

    Searches the dimensions `space`, without any all but those of the options `given`; the other settings are those of
    `config`, which is the first trial as it is. Each trial is a run folder in `out`, where sweep.html and best.json
    are written at the end; the test split is not read. Raises UserError where optuna or plotly is missing, for an
    unknown dimension, a name that would lead out of runs/, without validation images, for a database that cannot be
    used or is damaged, for files in `out` that are not this sweep's, and where the sweep in the database was begun
    with other data or settings; SystemExit after SIGTERM, SIGHUP or SIGINT.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"optuna could not be imported ({error}); pip install 'emnist-dali[sweep]'.") from error
    need_plotly()
    folder = f"sweep-{name}"
    if not is_plain(name) or (out == Path("runs") / folder and not is_component(folder)):
        raise UserError(f"The name {ascii(name)[:80]} names no folder; give another --name, of letters and digits.")
    searched = dimensions(space, given)
    shards = Shards(prepare(config.data.split, config.data.source, config.data.data_dir), "train")
    if not len(sampling.holdout(shards.labels(), config.data.val_fraction, config.training.seed)[1]):
        raise UserError("A sweep chooses by validation accuracy, and no image is held out; raise --val-fraction.")
    config = config.override({"wandb_group": config.run.wandb_group or name})
    tried = Space(config, searched, tuple(sorted({"lr", "weight_decay"} & set(given))))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(), _ended():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # there is one here without `optimize` too
        address = printable(masked(storage))[:200]
        database = _storage(storage, address)
        with _reading(address):
            study = _study(database, name, config.training.seed)
        search = _Search(study, database, address, trials, tried, out)
        _begin(search, shards.manifest.fingerprint)
        _work(search)
        return _finish(search)


@contextmanager
def _reading(address: str) -> Iterator[None]:
    """A database that fails, or holds what cannot be, is one sentence.

    Optuna reads rows as it wrote them: other ones end in exceptions of any type.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The database {address} could not be used ({_said(error)}); run the same command again once it can be "
            "reached, or restore it where it is damaged."
        ) from error


def _said(error: Exception) -> str:
    from optuna.exceptions import StorageInternalError

    if isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what Optuna says of it is the same of any
    error = getattr(error, "orig", None) or error  # without the SQL
    return reason(ValueError(masked(f"{type(error).__name__}: {error}".removesuffix(": "))))


@contextmanager
def _ended() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C are SystemExit, with a sentence on how to go on; a training has its own handlers."""
    # Python lets only the main thread have handlers; nohup ignores SIGHUP.
    here = threading.current_thread() is threading.main_thread()
    heard = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if here and hasattr(signal, name)]
    heard = [signum for signum in heard if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, lambda signum, frame: sys.exit(128 + signum)) for signum in heard}
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as end:
        with suppress(OSError):  # the terminal may be gone
            say("The sweep is not at its end; the same command goes on with it.")
        raise SystemExit(_code(end)) from end
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _code(end: BaseException) -> int:
    return 128 + signal.SIGINT if isinstance(end, KeyboardInterrupt) else end.code


def _study(storage: "RDBStorage", name: str, seed: int) -> "Study":
    import optuna

    # Of this process and machine: workers with the same generator would try the same settings.
    worker = np.random.SeedSequence((seed, os.getpid(), uuid.getnode()))
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(worker.generate_state(1)[0])),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        load_if_exists=True,
    )
    if [direction.name for direction in study.directions] != ["MAXIMIZE"]:
        raise ValueError("its study does not maximize one value")
    return study


def _storage(url: str, address: str) -> "RDBStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy import create_engine, inspect

    sqlite = url.startswith("sqlite")
    end = monotonic() + OPENING
    while True:
        try:
            if sqlite:
                engine = create_engine(url, connect_args={"timeout": LOCKED})
                tables = inspect(engine).get_table_names()
                engine.dispose()
                # Optuna would add its own; «studies» is the first that it makes.
                if tables not in ([], ["studies"]) and "version_info" not in tables:
                    raise UserError(f"--storage {address} is another program's database; name another file.")
            return RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": LOCKED}} if sqlite else None,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=_again,
            )
        except UserError:
            raise
        # Of several processes that make the tables at once all but one fail. A damaged one fails with any type.
        except Exception as error:
            if monotonic() > end:
                raise UserError(
                    f"--storage {address} could not be opened ({_said(error)}); give a URL like sqlite:///sweep.db, "
                    "wait until it can be reached, or restore it where it is damaged."
                ) from error
            sleep(0.2)


def _again(study: "Study", trial: "FrozenTrial") -> None:
    """Puts a trial that did not come to its end back in the queue, with its settings, its folder and its epochs."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, trial)


def _trials(search: _Search) -> list["FrozenTrial"]:
    """The sweep's trials, by number; UserError where one is none that this program can have written."""
    with _reading(search.address):
        trials = search.study.get_trials(deepcopy=False)
        for place, trial in enumerate(trials):
            if trial.number != place:
                raise ValueError(f"trial {place} is missing")
            if fault := _fault(search.space, trial):
                raise ValueError(f"of trial {place} {fault}")
        return trials


def _fault(space: Space, trial: "FrozenTrial") -> str | None:
    """What is wrong with a trial that was read from the database."""
    done = trial.state.name in ("COMPLETE", "PRUNED")
    folder = trial.user_attrs.get("folder", "" if done else "trial-0000")  # it is given one when it begins
    accuracies = [*trial.intermediate_values.values(), *(trial.values or ())]
    if not isinstance(folder, str) or not re.fullmatch(r"trial-[0-9]{4,9}", folder):
        return f"the folder is {folder!r:.80}"
    if (done and trial.duration is None) or (trial.state.name == "COMPLETE" and trial.value is None):
        return "the end is missing"
    if not all(type(accuracy) is float and 0 <= accuracy <= 1 for accuracy in accuracies):
        return "an accuracy is not from 0 to 1"
    if not all(type(epoch) is int and epoch >= 0 for epoch in trial.intermediate_values):
        return "an epoch is no number"
    if trial.distributions.keys() - space.distributions or (done and trial.distributions != space.distributions):
        return "the parameters are not the sweep's"
    for name, distribution in trial.distributions.items():
        if distribution != space.distributions[name]:
            return f"the range of {name} is not the sweep's"
    return space.fault(trial.params) or space.fault(trial.system_attrs.get("fixed_params", {}))


def _deciding(config: Config) -> dict[str, Any]:
    """The settings that decide a result."""
    return {
        name: value
        for node in config.to_dict().values()
        if isinstance(node, dict)
        for name, value in node.items()
        if name not in resume.FREE
    }


def _begin(search: _Search, fingerprint: str) -> None:
    """Tells a new study what it is of and puts the recipe's own trial first, once; raises UserError as `_check`."""
    tried = search.space
    decides = {
        "recipe": tried.config.recipe,
        "data fingerprint": fingerprint,
        "space": tried.searched,
        "given": tried.fixed,
        "image sizes": tried.sizes,
        **_deciding(tried.config),
    }
    decides = json.loads(json.dumps(decides))
    _check(search, decides)
    with _alone(search.out):
        _check(search, decides)  # another process may have been quicker
        with _reading(search.address):
            if "decides" not in search.study.user_attrs:
                search.study.set_user_attr("decides", decides)
            if not search.study.get_trials(deepcopy=False):
                search.study.enqueue_trial(tried.own())


def _check(search: _Search, decides: dict[str, Any]) -> None:
    """UserError where the study is of other data, settings or dimensions, or files in `out` are not its own."""
    study, out = search.study, search.out
    folders = [path.name for path in out.glob("trial-*")]  # before the trials: each of ours is older than its folder
    with _reading(search.address):
        before = study.user_attrs.get("decides")
        new = before is None and not study.get_trials(deepcopy=False)
    if not new and before != decides:
        was = before if isinstance(before, dict) else {}
        changed = [
            printable(f"{name} is {value} and was {str(was.get(name))[:80]}")
            for name, value in decides.items()
            if value != was.get(name)
        ]
        more = f"; {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"The sweep {study.study_name} in {search.address} was begun otherwise: {'; '.join(changed[:5])}{more}; "
            "set it back or take another --name."
        )
    trials = _trials(search)
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out} is no folder; name another --out.")
    if foreign := set(folders) - {trial.user_attrs.get("folder") for trial in trials}:
        raise _foreign(out / min(foreign))
    _check_files(search)


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{printable(str(path))} is no trial of this sweep; name another --out, or move it and its like elsewhere."
    )


def _check_files(search: _Search) -> None:
    """UserError where sweep.html or best.json would replace a file that this sweep did not write."""
    check_output(search.out / "sweep.html")
    path = search.out / "best.json"
    if not os.path.lexists(path):
        return
    best = None
    with suppress(UserError, OSError):
        # Whoever edits the file breaks its sha256; without one it may be anybody's.
        content = read_json(path)
        if '"sha256": ' in path.read_text(encoding="utf-8"):
            best = _deciding(from_dict(content))
    complete = [trial for trial in _trials(search) if trial.state.name == "COMPLETE"]
    if not any(_deciding(search.space.settings(trial.params)) == best for trial in complete):
        raise UserError(
            f"{path} was not written by this sweep, or changed; name another --out, or move it elsewhere."
        )


def _work(search: _Search) -> None:
    """Until all trials count, or the last of them are in the hands of other processes that are alive."""
    waited = 0
    while True:
        _take_back(search)
        states = Counter(trial.state.name for trial in _trials(search))
        done = states["COMPLETE"] + states["PRUNED"]
        if done >= search.trials:
            return
        if done + states["RUNNING"] < search.trials:
            _one(search)
            waited = 0
        elif waited <= GRACE:
            if not waited:
                say(f"Waiting up to {GRACE} s for the last trials: they run elsewhere, or their processes are gone.")
            sleep(1)
            waited += 1
        else:
            return


def _take_back(search: _Search) -> None:
    """Queues the trials again whose processes are gone.

    One that was asked for and never begun has no heartbeat, and Optuna would not find it: it is given one from here,
    and is lost like the others when no second follows.
    """
    from optuna.storages import fail_stale_trials
    from sqlalchemy import text

    running = {trial._trial_id for trial in _trials(search) if trial.state.name == "RUNNING"}
    if not running:
        return
    with _reading(search.address):
        with search.storage.engine.connect() as connection:
            begun = set(connection.execute(text("SELECT trial_id FROM trial_heartbeats")).scalars())
        for trial_id in running - begun:
            search.storage.record_heartbeat(trial_id)
        fail_stale_trials(search.study)


class _TakenOverError(Exception):
    """The trial is another process's: this one was suspended, or did not reach the database, for too long."""


def _one(search: _Search) -> None:
    """One trial, from asking for it to telling what came of it; nothing is told of one that was taken over.

    `Study.optimize` would print a traceback for each heartbeat that fails, and fail itself after a trial that was
    taken over.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    with _reading(search.address):
        trial = search.study.ask(search.space.distributions)
        search.storage.record_heartbeat(trial._trial_id)
    try:
        with _beating(search.storage, trial._trial_id):
            accuracy = _run(search, trial)
        held = _tell(search, trial, TrialState.FAIL if isnan(accuracy) else TrialState.COMPLETE, accuracy)
    except TrialPruned:
        held = _tell(search, trial, TrialState.PRUNED)
    except (SystemExit, KeyboardInterrupt) as end:
        with suppress(UserError):  # where the database is gone too, others find the trial by its heartbeat
            if _tell(search, trial, TrialState.FAIL):
                with _reading(search.address):
                    _again(search.study, _trials(search)[trial.number])
        raise SystemExit(_code(end)) from end
    except Exception:
        if held := _tell(search, trial, TrialState.FAIL):
            raise
    if not held:
        say(f"Trial {trial.number} is dropped: another process has taken it over.")


@contextmanager
def _beating(storage: "RDBStorage", trial_id: int) -> Iterator[None]:
    """Heartbeats in the background; one that fails is followed by the next."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            with suppress(Exception):  # any, as of `_reading`
                storage.record_heartbeat(trial_id)
        storage.remove_session()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell(search: _Search, trial: "Trial", state: "TrialState", accuracy: float = nan) -> bool:
    """Ends the trial in the database; False where it is ended there already."""
    from optuna.exceptions import UpdateFinishedTrialError

    with _reading(search.address):
        try:
            search.study.tell(trial, accuracy if state.name == "COMPLETE" else None, state)
        except (ValueError, UpdateFinishedTrialError):  # before Optuna writes, or while
            if _held(search, trial):
                raise
            return False
    return True


def _held(search: _Search, trial: "Trial") -> bool:
    return _trials(search)[trial.number].state.name == "RUNNING"


def _run(search: _Search, trial: "Trial") -> float:
    """A trial's best validation accuracy; nan, with which it does not count, where others were quicker."""
    # Two processes may have asked for the last one at once: those with the lowest numbers are the sweep's.
    trials = _trials(search)
    if sum(other.state.name != "FAIL" for other in trials[: trial.number]) >= search.trials:
        return nan
    known, own = trials[trial.number], f"trial-{trial.number:04d}"
    folder = known.user_attrs.get("folder", own)
    try:
        return _train(search, trial, known, folder)
    except InUseError as error:
        if folder == own or not _held(search, trial):
            raise
        # Of a process that is suspended: it still has the folder, but no longer the trial.
        say(f"Trial {trial.number} begins anew in {own}: {error}")
        return _train(search, trial, known, own)


def _train(search: _Search, trial: "Trial", known: "FrozenTrial", folder: str) -> float:
    """Trains `trial`, in the database `known` when it began, in `folder`, which is new or was given to it before."""
    from optuna import TrialPruned
    from optuna.exceptions import UpdateFinishedTrialError

    path = search.out / folder
    if known.user_attrs.get("folder") != folder:
        if os.path.lexists(path):
            raise _foreign(path)
        with _reading(search.address):
            trial.set_user_attr("folder", folder)
    config = search.space.settings(trial.params).override({"out": str(path)})
    say(f"Trial {trial.number}: {described(config)}.")

    def after_epoch(epoch: int, accuracy: float) -> None:
        with _reading(search.address):
            held = _held(search, trial)
            try:
                if held and epoch not in known.intermediate_values:  # of the process that had the trial before
                    trial.report(accuracy, epoch)
            except UpdateFinishedTrialError:
                held = False
            pruned = held and epoch + 1 < config.training.epochs and trial.should_prune()
        if not held:
            raise _TakenOverError
        if pruned:
            say(f"Trial {trial.number} is pruned: below the median of the others after epoch {epoch + 1}.")
            raise TrialPruned

    torch.compiler.reset()  # after eight compilations of one function torch would run it as it is
    try:
        # The result may change by another number of threads, and is still the trial's.
        run = train(config, _checkpoint(config), force=True, test=False, after_epoch=after_epoch)
    except (DivergedError, torch.OutOfMemoryError) as error:
        say(f"Trial {trial.number} is given up: {reason(error)}")
        raise TrialPruned from error
    finally:
        if config.run.wandb != "disabled":
            import wandb

            wandb.finish()  # the next trial would log into this one's run
    return max(line["val_accuracy"] for line in run.lines if line["kind"] == "epoch")


def _checkpoint(config: Config) -> dict[str, Any] | None:
    """Where the run in the trial's folder is to be gone on from; None where there is no run with these settings."""
    found = resume.find("auto", config.run.out)
    if not found:
        return None
    asked, state = resume.load(found, None, {})
    return state if _deciding(asked) == _deciding(config) else None


def _finish(search: _Search) -> str:
    """Writes sweep.html and best.json as things stand; the table and where the files are, for people.

    One process at a time, each with what it reads then: the last one's files hold the results of all.
    """
    with _alone(search.out):
        return _written(search)


def _alone(out: Path) -> Lock:
    """The lock of the folder, which is made; UserError where that cannot be, or another process has it for long."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} could not be made ({error.strerror}); name another --out.") from error
    end = monotonic() + WRITING
    while monotonic() < end:
        with suppress(InUseError):
            return Lock(out / LOCK, out)
        sleep(0.2)
    return Lock(out / LOCK, out)


def _written(search: _Search) -> str:
    out, space, trials = search.out, search.space, _trials(search)
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    # «COMPLETE» is before «PRUNED».
    done.sort(key=lambda trial: (trial.state.name, -trial.value if trial.value is not None else 0.0))
    rows = [
        (
            str(trial.number),
            f"{100 * trial.value:.2f} %" if trial.value is not None else "",
            trial.state.name.lower(),
            f"{trial.duration.total_seconds():,.0f}",  # of its last process
            described(space.settings(trial.params)),
            trial.user_attrs["folder"],
        )
        for trial in done
    ]
    lines = ["trial  accuracy  state     seconds  settings"]
    lines += [f"{row[0]:>5}  {row[1]:>8}  {row[2]:<8}  {row[3]:>7}  {row[4]}" for row in rows[:TOP]]
    if running := sum(trial.state.name == "RUNNING" for trial in trials):
        lines.append(f"{running} more run in other processes, the last of which writes the page again.")
    if not done or done[0].state.name != "COMPLETE":
        return "\n".join([*lines, "No trial came to its end yet."])
    best = space.settings(done[0].params)
    best = replace(best, run=replace(best.run, out=None, wandb=Run().wandb, wandb_group=None))
    _check_files(search)
    write_output(out / "sweep.html", _page(search, trials, rows).encode())
    write_json(out / "best.json", best.to_dict())
    lines.append(
        f"Best of {len(done)}: trial {done[0].number}, validation accuracy {rows[0][1]} with {rows[0][4]}.\n"
        f"{out / 'sweep.html'} shows the trials; `emnist-dali train --recipe {out / 'best.json'}` trains the best."
    )
    return "\n".join(lines)


def _page(search: _Search, trials: list["FrozenTrial"], rows: list[tuple[str, ...]]) -> str:
    from optuna import create_study
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import plot_optimization_history, plot_parallel_coordinate, plot_param_importances

    with _reading(search.address):
        study = create_study(direction="maximize")  # in memory: charts of the same trials as the table
        study.add_trials(trials)
    value = "validation accuracy"
    body = f"<p>{len(rows)} of {search.trials} trials, chosen by their best {value}; the test split was not read.</p>"
    history = plot_optimization_history(study, target_name=value).update_layout(title=None)
    body += f"<h2>History</h2>{chart(history)}"
    if sum(row[2] == "complete" for row in rows) > 1:
        together = plot_parallel_coordinate(study, target_name=value).update_layout(title=None)
        body += (
            "<h2>Settings and results</h2><p>lr_scale and weight_decay_scale are multiples of what is usual for the "
            "optimizer, where the recipe's own has the recipe's; mixing_probability 0 is without mixing.</p>"
            f'<div class="wide"><div style="min-width: 60rem">{chart(together, 460)}</div></div>'
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page says that few trials tell little
            importances = plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target_name=value)
        body += (
            "<h2>Importance</h2><p>How much each setting has to do with being among the best (PED-ANOVA, "
            "arXiv:2304.10255); of few trials this is a guess.</p>"
            f"{chart(importances.update_layout(title=None))}"
        )
    cells = [
        [*row[:4], f'<div style="min-width: 16rem">{html.escape(row[4])}</div>', html.escape(row[5])] for row in rows
    ]
    body += "<h2>Trials</h2>" + table(["trial", value, "state", "seconds", "settings", "folder"], cells)
    return page(f"Sweep {search.study.study_name}", body, charts=True)
