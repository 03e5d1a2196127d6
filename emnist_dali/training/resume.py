"""Resuming a run: from which checkpoint, with which settings, and whether the result stays the same."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import Config, from_dict
from ..core import distributed
from ..core.documents import is_document
from ..core.errors import UserError
from ..core.progress import say
from ..loading.backends import engine, recorded_engine
from ..models.import_path import code_digest
from ..recipes import choose
from ..runs import schema
from ..runs.checkpoint import load_state
from ..runs.file_names import LAST, is_run
from ..runtime import has_gpu
from .build import Training


def find(resume: str, out: str | None) -> Path | None:
    """The checkpoint that --resume names: a run folder's last, a file, or with `auto` the last in run.out.

    None if `auto` finds no run in run.out yet. Raises UserError if there is nothing to resume from.
    """
    if resume == "auto":
        if not out:
            raise UserError("--resume auto needs run.out: the folder of the run to resume or to start.")
        return Path(out, LAST) if is_run(Path(out)) else None
    if out:
        raise UserError(f"--resume {resume} continues in that run's own folder; drop run.out.")
    path = Path(resume)
    if path.is_file():
        # Its run is what is resumed, and written to.
        if path.parent.name != "checkpoints" or not is_run(path.parent.parent):
            raise UserError(
                f"{path} is not in a run folder; move it back to checkpoints/{path.name} in a copy of its run."
            )
        return path
    if not (path / LAST).exists():
        raise UserError(f"{path} contains no checkpoint; choose a run folder, or a checkpoint in one.")
    return path / LAST


def load(path: Path, recipe: str | None, values: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The config of the checkpoint's run, overridden by `values` (`Config.override`), and the checkpoint.

    A file with a recipe is read again, and `check` compares its settings with the run's; what changes no result stays
    as the run has it. Raises UserError for another recipe than the run's.
    """
    version = _version(path)
    state = load_state(path)
    if schema.STATE.keys() - state.keys():
        raise UserError(f"{path} is not a valid checkpoint of this version; start a new run.")
    config = from_dict(state["asked"], str(path))
    if recipe is not None and is_document(recipe):
        device = str(values.get("run.device") or config.run.device)
        gpu = not device.startswith("cpu") and has_gpu()
        file, _ = choose(recipe, values.get("data.split") or config.data.split, gpu)
        config = file.override(config.free())
    elif recipe not in (None, "auto", config.recipe):
        raise UserError(f"{path} was trained with recipe {config.recipe}, not {recipe}; start a new run for that.")
    state["file"] = str(path), version
    return config.override({**values, "run.out": str(path.parent.parent)}), state


def check_unchanged(state: dict[str, Any]) -> None:
    """Raises UserError if the checkpoint that `load` read was replaced since: another process trained on."""
    path, version = state["file"]
    if distributed.is_main() and _version(Path(path)) != version:
        raise UserError(f"{path} was replaced while this process was starting; start it again.")


def _version(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def facts(training: Training) -> dict[str, Any]:
    """What decides a result besides the settings."""
    config = training.config
    return {
        "data fingerprint": training.shards.manifest.fingerprint,
        "statistics": (training.stats.mean, training.stats.std),
        "pipeline": engine(config.data.backend),
        "torch threads": torch.get_num_threads() if config.run.device == "cpu" else None,
        "slices of a batch": training.trainer.slices,
        "ranks": distributed.world_size(),
        "code of the network": code_digest(config.model.model),
        "augment": _name(training.trainer.augment),
        "own optimizer": _name(training.trainer.make_optimizer),
    }


def _name(hook: Callable | None) -> str | None:
    """`module:function` of a function or class, and that of the class of any other callable."""
    if hook is None:
        return None
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__module__}:{named.__qualname__}"


def check(state: dict[str, Any], config: Config, now: dict[str, Any], force: bool) -> None:
    """Raises UserError naming what would change the result of the checkpoint's run; with `force` only prints it.

    `config` is resolved, and `now` are its `facts`. More epochs are fine if the schedule does not depend on their
    number.
    """
    before = from_dict(state["config"])  # settings newer than the checkpoint were at their defaults
    for name, value, was in (
        ("model", config.model.model, before.model.model),
        ("optimizer", config.training.optimizer, before.training.optimizer),
    ):
        if value != was:
            raise UserError(f"The checkpoint's {name} is {was}, not {value}; start a new run for that.")
    # Versions without slices trained on whole batches; there was nothing of the user's own.
    own = dict.fromkeys(("code of the network", "augment", "own optimizer"))
    facts_before = {"slices of a batch": 1, **own, **state["facts"]}
    facts_before["pipeline"] = recorded_engine(state["facts"]["pipeline"])
    if now["ranks"] != facts_before["ranks"] and {config.run.compile, before.run.compile} == {"graph", "off"}:
        # A graph is of one rank, and has the kernels of `off`.
        before = before.override({"run.compile": config.run.compile})
    changed = "; ".join(sorted([*_changed_settings(config, before), *_changed_facts(now, facts_before)]))
    if not changed:
        return
    if not force:
        raise UserError(f"Resuming would change the result: {changed}; restore its settings, or add --resume-force.")
    say(f"Resuming with a different result: {changed}.")


def _changed_settings(config: Config, before: Config) -> Iterator[str]:
    if config.training.schedule == "restarts" and config.training.epochs > before.training.epochs:
        before = before.override({"training.epochs": config.training.epochs})
    return differences(config, before)


def differences(config: Config, before: Config) -> Iterator[str]:
    """What changes a result, with both values."""
    now, was = config.identity(), before.identity()
    for part in now:
        yield from _differences(part, now[part], was[part])
    if config.run.device.split(":")[0] != before.run.device.split(":")[0]:
        yield f"run.device is {config.run.device} and was {before.run.device}"


def _differences(path: str, value: Any, was: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(was, dict):
        for name in value:
            yield from _differences(f"{path}.{name}", value[name], was[name])
    elif value != was:
        yield f"{path} is {value} and was {was}"


def _changed_facts(now: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    ignored = {"ranks"}
    if now["ranks"] != before["ranks"]:
        ignored |= {"torch threads", "slices of a batch"}  # sums and statistics differ anyway
        say(f"{before['ranks']} ranks before, {now['ranks']} now: BatchNorm sees other slices of a batch.")
    for name in now.keys() - ignored:
        if now[name] != before[name]:
            yield f"{name} is {now[name]} and was {before[name]}"
