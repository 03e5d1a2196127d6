"""A search of a recipe's settings by validation accuracy: Optuna's trials, each a run of its own.

Any number of processes, on one machine or many, share a sweep by its database. Trials that are complete or pruned
count; one whose process was stopped or killed does not: a new trial with its settings goes on in its run folder.
"""

import html
import json
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import order, resume
from .checkpoint import load_state
from .config import Config, Run, from_dict
from .errors import UserError
from .files import reason, write_json, write_whole
from .page import chart, need_plotly, page, table
from .prepare import prepare
from .progress import say
from .search_space import Space, described, dimensions
from .shards import Shards
from .train import train
from .trainer import DivergedError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

# Trials before the first is pruned.
STARTUP = 4

# Seconds. A process writes a heartbeat while it trains; without one for so long its trial is taken to be lost.
HEARTBEAT, GRACE = 10, 60
# Seconds that a process waits for the SQLite file while others write it.
LOCKED = 60
OPENINGS = 10

TOP = 10  # lines of the table


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
    unknown dimension, without validation images, for a database that cannot be used, and where the sweep in it was
    begun with other data or settings; SystemExit after SIGTERM or SIGINT.
    """
    try:
        import optuna
        import sqlalchemy.exc
    except ImportError as error:
        raise UserError(f"optuna could not be imported ({error}); pip install 'emnist-dali[sweep]'.") from error
    need_plotly()
    searched = dimensions(space, given)
    shards = Shards(prepare(config.data.split, config.data.source, config.data.data_dir), "train")
    if not len(order.holdout(shards.labels(), config.data.val_fraction, config.training.seed)[1]):
        raise UserError("A sweep chooses by validation accuracy, and no image is held out; raise --val-fraction.")
    config = config.override({"wandb_group": config.run.wandb_group or name})
    tried = Space(config, searched, tuple(sorted({"lr", "weight_decay"} & set(given))))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(), _ended():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            study = _study(storage, name, config.training.seed)
            _check(study, tried, shards.manifest.fingerprint, out)
            if not study.trials:
                study.enqueue_trial(tried.own(), skip_if_exists=True)
            _work(study, trials, partial(_run, study, trials, tried, out))
            return _finish(study, trials, tried, out)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"The database of the sweep failed ({reason(error)}); the same command goes on once it can be reached."
        ) from error


@contextmanager
def _ended() -> Iterator[None]:
    """SIGTERM and Ctrl-C are SystemExit, with a sentence on how to go on; a training has handlers of its own."""
    before = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as end:
        say("The sweep is not at its end; the same command goes on with it.")
        raise SystemExit(_code(end)) from end
    finally:
        signal.signal(signal.SIGTERM, before)


def _code(end: BaseException) -> int:
    return 128 + signal.SIGINT if isinstance(end, KeyboardInterrupt) else end.code


def _study(storage: str, name: str, seed: int) -> "Study":
    import optuna

    # Of this process and machine: workers with the same generator would try the same settings.
    worker = np.random.SeedSequence((seed, os.getpid(), uuid.getnode()))
    return optuna.create_study(
        storage=_storage(storage),
        study_name=name,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(worker.generate_state(1)[0])),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        load_if_exists=True,
    )


def _storage(url: str) -> "RDBStorage":
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    sqlite = url.startswith("sqlite")
    for _ in range(OPENINGS):
        try:
            return RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": LOCKED}} if sqlite else None,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=_again,
            )
        # Of several processes that make the tables at once all but one fail.
        except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
            failure = error
            sleep(0.2)
    raise UserError(
        f"--storage could not be opened ({reason(failure)}); give a URL like sqlite:///sweep.db."
    ) from failure


def _again(study: "Study", trial: "FrozenTrial") -> None:
    """Puts a trial that did not come to its end back in the queue, with its settings, its folder and its epochs."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, trial)


def _deciding(config: Config) -> dict[str, Any]:
    """The settings that decide a result."""
    return {
        name: value
        for node in config.to_dict().values()
        if isinstance(node, dict)
        for name, value in node.items()
        if name not in resume.FREE
    }


def _check(study: "Study", tried: Space, fingerprint: str, out: Path) -> None:
    """Raises UserError where the study is of other data, settings or dimensions, or `out` is another study's."""
    decides = {
        "recipe": tried.config.recipe,
        "data fingerprint": fingerprint,
        "space": tried.searched,
        "given": tried.fixed,
        "image sizes": tried.sizes,
        **_deciding(tried.config),
    }
    decides = json.loads(json.dumps(decides))
    folders = [path.name for path in out.glob("trial-*")]  # before the trials: each of ours is older than its folder
    before = study.user_attrs.get("decides")
    if before is None and not study.trials:
        study.set_user_attr("decides", decides)
    elif before != decides:
        changed = "; ".join(
            f"{name} is {value} and was {(before or {}).get(name)}"
            for name, value in decides.items()
            if value != (before or {}).get(name)
        )
        raise UserError(
            f"The sweep {study.study_name} was begun otherwise: {changed}; set it back or take another --name."
        )
    foreign = set(folders) - {trial.user_attrs.get("folder") for trial in study.trials}
    if foreign:
        raise UserError(
            f"{out / min(foreign)} is no trial of this sweep; name another --out, or remove it and its like."
        )


def _work(study: "Study", trials: int, objective: Callable[["Trial"], float]) -> None:
    """Until `trials` trials count, or the last of them are in the hands of other processes that are alive."""
    from optuna.storages import fail_stale_trials

    waited = 0
    while _count(study, "COMPLETE", "PRUNED") < trials:
        if _count(study, "COMPLETE", "PRUNED", "RUNNING") < trials:
            study.optimize(objective, n_trials=1)
            waited = 0
        elif waited <= GRACE:
            if not waited:
                say(f"Waiting up to {GRACE} s for the last trials: they run elsewhere, or their processes are gone.")
            sleep(1)
            waited += 1
            fail_stale_trials(study)
        else:
            return


def _count(study: "Study", *states: str) -> int:
    return sum(trial.state.name in states for trial in study.get_trials(deepcopy=False))


def _run(study: "Study", trials: int, tried: Space, out: Path, trial: "Trial") -> float:
    """One trial: its best validation accuracy; nan, which does not count, where others were quicker."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    # Two processes may have asked for the last one at once: those with the lowest numbers are the sweep's.
    before = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
    if sum(other.state != TrialState.FAIL for other in before) >= trials:
        return nan
    folder = trial.user_attrs.get("folder", f"trial-{trial.number:04d}")
    trial.set_user_attr("folder", folder)
    config = tried.settings(tried.suggest(trial)).override({"out": str(out / folder)})
    say(f"Trial {trial.number}: {described(config)}.")

    def after_epoch(epoch: int, accuracy: float) -> None:
        trial.report(accuracy, epoch)
        if epoch + 1 < config.training.epochs and trial.should_prune():
            say(f"Trial {trial.number} is pruned: below the median of the others after epoch {epoch + 1}.")
            raise TrialPruned

    torch.compiler.reset()  # after eight compilations of one function torch would run it as it is
    try:
        # The result may change by another number of threads, and is still the trial's.
        run = train(config, _checkpoint(config), force=True, test=False, after_epoch=after_epoch)
    except (SystemExit, KeyboardInterrupt) as end:
        study.tell(trial, state=TrialState.FAIL)
        _again(study, study.trials[trial.number])
        raise SystemExit(_code(end)) from end
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
    state = load_state(found) if found else None
    return state if state and _deciding(from_dict(state["asked"])) == _deciding(config) else None


def _finish(study: "Study", trials: int, tried: Space, out: Path) -> str:
    """Writes sweep.html and best.json as things stand; the table and where the files are, for people."""
    done = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]
    # «COMPLETE» is before «PRUNED».
    done.sort(key=lambda trial: (trial.state.name, -trial.value if trial.value is not None else 0.0))
    rows = [
        (
            str(trial.number),
            f"{100 * trial.value:.2f} %" if trial.value is not None else "",
            trial.state.name.lower(),
            f"{trial.duration.total_seconds():,.0f}",  # of its last process
            described(tried.settings(trial.params)),
            trial.user_attrs["folder"],
        )
        for trial in done
    ]
    lines = ["trial  accuracy  state     seconds  settings"]
    lines += [f"{row[0]:>5}  {row[1]:>8}  {row[2]:<8}  {row[3]:>7}  {row[4]}" for row in rows[:TOP]]
    if running := _count(study, "RUNNING"):
        lines.append(f"{running} more run in other processes, the last of which writes the page again.")
    if not done or done[0].state.name != "COMPLETE":
        return "\n".join([*lines, "No trial came to its end yet."])
    best = tried.settings(done[0].params)
    best = replace(best, run=replace(best.run, out=None, wandb=Run().wandb, wandb_group=None))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "best.json", best.to_dict())
    write_whole(out / "sweep.html", _page(study, trials, rows).encode())
    lines.append(
        f"Best of {len(done)}: trial {done[0].number}, validation accuracy {rows[0][1]} with {rows[0][4]}.\n"
        f"{out / 'sweep.html'} shows the trials; `emnist-dali train --recipe {out / 'best.json'}` trains the best."
    )
    return "\n".join(lines)


def _page(study: "Study", trials: int, rows: list[tuple[str, ...]]) -> str:
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import plot_optimization_history, plot_parallel_coordinate, plot_param_importances

    value = "validation accuracy"
    body = f"<p>{len(rows)} of {trials} trials, chosen by their best {value}; the test split was not read.</p>"
    history = plot_optimization_history(study, target_name=value).update_layout(title=None)
    body += f"<h2>History</h2>{chart(history)}"
    if _count(study, "COMPLETE") > 1:
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
    return page(f"Sweep {study.study_name}", body, charts=True)
