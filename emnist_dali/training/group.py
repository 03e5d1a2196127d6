"""Trains a group: its runs one after the other, and whatever interrupts them, on with what is missing."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..core.files import remove_temporaries
from ..core.locks import LOCK, Lock
from ..core.progress import say
from ..core.text import table
from ..evaluation.significance import mean
from ..runs.file_names import GROUP, is_run
from ..runs.folder import RunFolder
from ..runs.group import Group, Kind, enclosing_group, is_group, read_group
from ..runtime import resolve
from . import resume
from .build import training_shards
from .session import train


def group_of(config: Config, kind: Kind, number: int) -> Group:
    """The group in `run.out`, or runs/<split>-<recipe>-seeds, where the same command finds it again."""
    name = "seeds" if kind == "seeds" else f"{number}-folds"
    path = Path(config.run.out or Path("runs") / f"{config.data.split}-{config.recipe}-{name}")
    if kind == "folds" and config.data.folds:
        raise UserError("data.folds and data.fold are for a run of its own; leave them out with --folds.")
    config = config.override({"run.out": None, "wandb_group": config.run.wandb_group or path.name})
    return Group(path, kind, number, config)


def find_group(resume: str, recipe: str | None, values: Mapping[str, Any]) -> Group | None:
    """The group that --resume names, its settings overridden by `values`; None if it names anything else."""
    path = Path(resume)
    if not is_group(path):
        return None
    if recipe or "run.out" in values:
        raise UserError(f"{path} is a group, whose recipe and folder are its own; drop --recipe and run.out.")
    group = read_group(path)
    return replace(group, config=group.config.override(values))


def train_group(group: Group, force: bool = False) -> None:
    """Trains and tests what is missing of the group's runs, whose test results stay as they are.

    A run that was interrupted is resumed, with `force` even if its result will differ. The folder has one writer at a
    time. Raises UserError as `train` does, for a folder with a run or another group, and for a run there whose
    settings are not the group's; SystemExit after SIGTERM, SIGINT or SIGHUP.
    """
    distributed.broadcast_from_main(lambda: check_can_train(group))
    new = not group.path.exists()
    if distributed.broadcast_from_main(lambda: group.untested):  # what is complete needs no data
        group = replace(group, data=training_shards(resolve(group.config)).manifest.fingerprint)
    with ExitStack() as stack:
        distributed.broadcast_from_main(lambda: _begin(group, stack))
        try:
            for i, (folder, config) in enumerate(group.members.items(), 1):
                say(f"{folder.name}, {i} of {group.number}.")
                _train_run(config, force)
        except (SystemExit, KeyboardInterrupt):
            say(f"The group has not finished; its command, or `emnist-dali train --resume {group.path}`, goes on.")
            raise
        finally:
            if distributed.is_main() and not group.begun:  # settings that cannot be trained leave no group
                with suppress(OSError):
                    for file in (GROUP, LOCK):
                        (group.path / file).unlink()
                    if new:
                        group.path.rmdir()
    if distributed.is_main():
        say(summary(group))


def check_can_train(group: Group) -> None:
    """Raises UserError for a folder with a run or another group, or inside of a group."""
    path, advice = group.path, "choose another run.out"
    if is_run(path):
        raise UserError(f"{path} already contains a run; {advice}.")
    if outer := enclosing_group(path):
        raise UserError(f"{outer} is a group itself; {advice}, outside of it.")
    if is_group(path) and (before := read_group(path)).begun:
        # Seeds can be added; each fold is another when there are more.
        fits = before.number <= group.number if group.kind == "seeds" else before.number == group.number
        if before.kind != group.kind or not fits:
            raise UserError(
                f"{path} is a group of {before.number} {before.kind}, not of {group.number} {group.kind}; {advice}."
            )
        if None not in (before.data, group.data) and before.data != group.data:
            raise UserError(f"{path} was begun with other data than those prepared now; restore them, or {advice}.")
        _refuse_changes(path, group.config, before.config, advice)


def _begin(group: Group, stack: ExitStack) -> None:
    """Creates and locks the folder, and writes what it is, unless that is there."""
    check_can_train(group)
    path = group.path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} could not be created ({error.strerror}); choose another run.out.") from error
    stack.enter_context(Lock(path / LOCK, path))
    remove_temporaries(path)
    check_can_train(group)  # here, where no other process begins one
    if group.untested:
        group.write()


def _refuse_changes(path: Path, config: Config, before: Config, advice: str) -> None:
    if changed := "; ".join(resume.differences(_resolved(config), _resolved(before))):
        raise UserError(f"{path} has other settings: {changed}; restore them, or {advice}.")


def _resolved(config: Config) -> Config:
    """With every `auto` decided, which is no change; as it is where it asks for a device that is not here."""
    with suppress(UserError):
        return resolve(config)
    return config


def _train_run(config: Config, force: bool) -> None:
    """Begins a run of a group, resumes it, or leaves it as it is if it was tested."""
    state = distributed.broadcast_from_main(lambda: _state(config))
    if state and any(entry["kind"] == "test" for entry in state["log"]):
        say(f"{config.run.out} is complete.")
        return
    torch.compiler.reset()  # torch stops compiling a function after its eighth version
    train(config, state, force)


def _state(config: Config) -> dict[str, Any] | None:
    """The checkpoint to resume from; None for a run that has not begun."""
    if not (path := resume.find("auto", config.run.out)):
        return None
    asked, state = resume.load(path, None, {})
    _refuse_changes(Path(config.run.out), config, asked, "move it out of the group")
    return state


def summary(group: Group) -> str:
    """The results of a group's runs, all of them tested, and their mean ± standard deviation, as lines of text."""
    names, rows, images = [folder.name for folder in group.members], [], 0
    for folder in group.members:
        entries = RunFolder(folder).entries()
        test = next(entry for entry in entries if entry["kind"] == "test")
        validation = [100 * entry["val_accuracy"] for entry in entries if "val_accuracy" in entry]
        rows.append([100 * test["accuracy"], 100 * test["macro_f1"], max(validation, default=nan)])
        images = test["images"]
    means = [f"{np.mean(column):.2f} ± {np.std(column, ddof=1):.2f}" for column in zip(*rows, strict=True)]
    cells = [["", "test accuracy, %", "macro F1, %", "best validation accuracy, %"]]
    cells += [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, rows, strict=True)]
    cells.append(["mean ± sd", *means])
    columns = 3 if isnan(rows[0][-1]) else 4  # without images held out
    lines = table([row[:columns] for row in cells], right=range(1, columns))
    low, high = mean([row[0] / 100 for row in rows], images, group.kind)["interval"]
    lines.append(
        f"95 % interval of the mean test accuracy, over {group.kind} and {images:,} test images: "
        f"{100 * low:.2f} to {100 * high:.2f} %. Group folder: {group.path}"
    )
    return "\n".join(lines)
