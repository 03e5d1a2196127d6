"""A sweep's trials in the Optuna database that all its processes share.

A trial whose process was stopped or killed is queued again: another process resumes it in its run folder. Nothing in
the database is trusted, which may be damaged or somebody else's: `SweepDatabase.trials` checks what it reads.
"""

import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import current
from ..core.errors import UserError
from ..core.files import masked, printable, reason
from .search_space import Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

# Trials before the first is pruned.
STARTUP = 4

# Seconds. A process sends a heartbeat while it trains; a trial that has had none for GRACE is lost.
HEARTBEAT, GRACE = 10, 60
# Seconds to wait for an SQLite file that others are writing; Optuna asks for a trial five times.
LOCKED = 10
# Seconds for several processes to create the tables at once.
OPENING = 2


class TakenOverError(Exception):
    """Another process has the trial now: this one was suspended, or could not reach the database, for too long."""


@dataclass(frozen=True)
class SweepDatabase:
    """One study, whose parameters are those of `space`; `address` is its URL for messages.

    Every method raises UserError if the database cannot be used or is damaged.
    """

    study: "Study"
    storage: "RDBStorage"
    address: str
    space: Space

    def trials(self) -> list["FrozenTrial"]:
        """All trials by number; UserError for one that this program cannot have written."""
        with checked(self.address):
            trials = self.study.get_trials(deepcopy=False)
            for number, trial in enumerate(trials):
                if trial.number != number:
                    raise ValueError(f"trial {number} is missing")
                if fault := _fault(self.space, trial):
                    raise ValueError(f"trial {number}: {fault}")
            return trials

    def identity(self) -> dict[str, Any] | None:
        """What the sweep was begun with, in today's names; None for a new one."""
        with checked(self.address):
            identity = self.study.user_attrs.get("decides")
            if identity is None and not self.study.get_trials(deepcopy=False):
                return None
            return current(identity) if isinstance(identity, dict) else {}

    def begin(self, identity: dict[str, Any]) -> None:
        """Records what a new sweep is of, and queues the recipe itself as its first trial."""
        with checked(self.address):
            if "decides" not in self.study.user_attrs:
                self.study.set_user_attr("decides", identity)
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(self.space.recipe_params())

    def ask(self) -> "Trial":
        with checked(self.address):
            trial = self.study.ask(self.space.distributions)
            self.storage.record_heartbeat(trial._trial_id)
            return trial

    def assign_folder(self, trial: "Trial", folder: str) -> None:
        """Records the name of the run folder in which `trial` trains."""
        with checked(self.address):
            trial.set_user_attr("folder", folder)

    def report(self, trial: "Trial", epoch: int, accuracy: float) -> bool:
        """Records an epoch's accuracy; whether to prune the trial. Raises TakenOverError."""
        from optuna.exceptions import UpdateFinishedTrialError

        with checked(self.address):
            recorded = self.trials()[trial.number]
            if recorded.state.name != "RUNNING":
                raise TakenOverError
            if epoch not in recorded.intermediate_values:  # a process that had the trial before may have recorded it
                try:
                    trial.report(accuracy, epoch)
                except UpdateFinishedTrialError as error:
                    raise TakenOverError from error
            return trial.should_prune()

    def tell(self, trial: "Trial", state: str, accuracy: float | None = None) -> bool:
        """Ends the trial in `state`: COMPLETE with its accuracy, PRUNED or FAIL; False if it has ended already."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with checked(self.address):
            try:
                self.study.tell(trial, accuracy, TrialState[state])
            except (ValueError, UpdateFinishedTrialError):  # before Optuna writes, or while it does
                if self.is_held(trial):
                    raise
                return False
        return True

    def is_held(self, trial: "Trial") -> bool:
        """Whether the trial has not been taken over by another process."""
        return self.trials()[trial.number].state.name == "RUNNING"

    def requeue(self, trial: "Trial") -> None:
        """Queues again a trial that this process could not finish."""
        recorded = self.trials()[trial.number]
        with checked(self.address):
            _requeue(self.study, recorded)

    def requeue_lost(self) -> None:
        """Queues again the trials whose processes are gone.

        Optuna would not find one that was asked for and never begun, which has no heartbeat: it gets one here, and is
        lost like the others if no second follows.
        """
        from optuna.storages import fail_stale_trials
        from sqlalchemy import text

        running = {trial._trial_id for trial in self.trials() if trial.state.name == "RUNNING"}
        if not running:
            return
        with checked(self.address):
            with self.storage.engine.connect() as connection:
                begun = set(connection.execute(text("SELECT trial_id FROM trial_heartbeats")).scalars())
            for trial_id in running - begun:
                self.storage.record_heartbeat(trial_id)
            fail_stale_trials(self.study)

    def snapshot(self, trials: list["FrozenTrial"]) -> "Study":
        """A study of the same name in memory, with `trials` only."""
        import optuna

        with checked(self.address):
            study = optuna.create_study(study_name=self.study.study_name, direction="maximize")
            study.add_trials(trials)
            return study


def open_database(url: str, name: str, space: Space) -> SweepDatabase:
    """The sweep `name` in the database at `url`, created if missing; UserError if that fails or it is damaged."""
    import optuna

    address = printable(masked(url))[:200]
    storage = open_storage(url, address)
    # Seeded by process and machine: workers with the same generator would try the same settings.
    worker = np.random.SeedSequence((space.config.training.seed, os.getpid(), uuid.getnode()))
    with checked(address):
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
    return SweepDatabase(study, storage, address, space)


def open_storage(url: str, address: str) -> "RDBStorage":
    """The database at `url`, which messages call `address`; UserError if that fails for OPENING seconds."""
    from optuna.storages import RDBStorage
    from sqlalchemy import create_engine, inspect

    sqlite = url.startswith("sqlite")
    deadline = monotonic() + OPENING
    while True:
        try:
            if sqlite:
                engine = create_engine(url, connect_args={"timeout": LOCKED})
                tables = inspect(engine).get_table_names()
                engine.dispose()
                # Optuna would add its own; «studies» is the first that it creates.
                if tables not in ([], ["studies"]) and "version_info" not in tables:
                    raise UserError(f"--storage {address} is another program's database; choose another file.")
            return RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": LOCKED}} if sqlite else None,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=_requeue,
            )
        except UserError:
            raise
        # Of several processes that create the tables at once, all but one fail. A damaged file can raise anything.
        except Exception as error:
            if monotonic() > deadline:
                raise UserError(
                    f"--storage {address} could not be opened ({_reason(error)}); use a URL like sqlite:///sweep.db, "
                    "wait until the database can be reached, or restore it if it is damaged."
                ) from error
            sleep(0.2)


@contextmanager
def heartbeats(storage: "RDBStorage", trial_id: int) -> Iterator[None]:
    """Sends heartbeats in the background; a failed one is followed by the next."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(Exception):  # of any type, as in `checked`
                storage.record_heartbeat(trial_id)
        storage.remove_session()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def checked(address: str) -> Iterator[None]:
    """Makes one sentence of a database that fails, or that holds what it cannot hold.

    Optuna reads rows as it wrote them: with others it raises exceptions of any type.
    """
    try:
        yield
    except (UserError, TakenOverError):
        raise
    except Exception as error:
        raise UserError(
            f"The database {address} could not be used ({_reason(error)}); run the same command again once it can be "
            "reached, or restore it if it is damaged."
        ) from error


def _reason(error: Exception) -> str:
    from optuna.exceptions import StorageInternalError

    if isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Optuna's own message is the same for any cause
    error = getattr(error, "orig", None) or error  # without the SQL
    return reason(ValueError(masked(f"{type(error).__name__}: {error}".removesuffix(": "))))


def _requeue(study: "Study", trial: "FrozenTrial") -> None:
    """Queues a trial again with its parameters, its folder and its epochs."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, trial)


def _fault(space: Space, trial: "FrozenTrial") -> str | None:
    """What is wrong with a trial that was read from the database."""
    done = trial.state.name in ("COMPLETE", "PRUNED")
    folder = trial.user_attrs.get("folder", "" if done else "trial-0000")  # assigned when it begins
    accuracies = [*trial.intermediate_values.values(), *(trial.values or ())]
    if not isinstance(folder, str) or not re.fullmatch(r"trial-[0-9]{4,9}", folder):
        return f"its folder is {folder!r:.80}"
    if (done and trial.duration is None) or (trial.state.name == "COMPLETE" and trial.value is None):
        return "its end is missing"
    if not all(type(accuracy) is float and 0 <= accuracy <= 1 for accuracy in accuracies):
        return "an accuracy is not from 0 to 1"
    if not all(type(epoch) is int and epoch >= 0 for epoch in trial.intermediate_values):
        return "an epoch is not a number"
    if trial.distributions.keys() - space.distributions or (done and trial.distributions != space.distributions):
        return "its parameters are not the sweep's"
    for name, distribution in trial.distributions.items():
        if distribution != space.distributions[name]:
            return f"the range of {name} is not the sweep's"
    return space.fault(trial.params) or space.fault(trial.system_attrs.get("fixed_params", {}))
