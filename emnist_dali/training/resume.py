"""Going on from a checkpoint: which one, with which settings, and what may have changed since."""

from pathlib import Path
from typing import Any

import torch

from ..config import Config, from_dict
from ..core import distributed
from ..core.errors import UserError
from ..core.progress import say
from ..loading.backends import engine, recorded_engine
from ..runs import schema
from ..runs.checkpoint import load_state
from ..runs.folder import LAST, is_run
from .build import Training

# Settings that cannot change a result.
FREE = {
    "data_dir", "source", "verify_data", "device", "profile", "out", "wandb", "wandb_group", "checkpoint_every",
    "keep",
}  # fmt: skip


def find(resume: str, out: str | None) -> Path | None:
    """The checkpoint that --resume names: a run folder's last, a file, or with auto that of --out.

    None where --out holds no run yet. Raises UserError where there is nothing to go on from.
    """
    if resume == "auto":
        if not out:
            raise UserError("--resume auto needs --out: the run folder to go on with, or to start in.")
        return Path(out, LAST) if is_run(Path(out)) else None
    if out:
        raise UserError(f"--resume {resume} goes on in that run's own folder; leave --out away.")
    path = Path(resume)
    if path.is_file():
        # What is gone on with is the run that it lies in, and that is written to.
        if path.parent.name != "checkpoints" or not is_run(path.parent.parent):
            raise UserError(
                f"{path} lies in no run's folder; put it back as checkpoints/{path.name} of a copy of its run."
            )
        return path
    if not (path / LAST).exists():
        raise UserError(f"{path} holds no checkpoint; name a run folder, or a checkpoint in it.")
    return path / LAST


def load(path: Path, recipe: str | None, options: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The config of the checkpoint's run with `options` in their places, and the checkpoint.

    Raises UserError for another recipe.
    """
    written = _written(path)
    state = load_state(path)
    if schema.STATE.keys() - state.keys():
        raise UserError(f"{path} is no checkpoint of this version; start the run anew.")
    config = from_dict(state["asked"], str(path))
    if recipe not in (None, "auto", config.recipe) and not recipe.endswith(".json"):  # settings are checked anyway
        raise UserError(f"{path} is of recipe {config.recipe}, not {recipe}; start another run for that.")
    state["file"] = str(path), written
    return config.override({**options, "out": str(path.parent.parent)}), state


def check_unchanged(state: dict[str, Any]) -> None:
    """Raises UserError where the checkpoint that `load` read has been replaced since: another process trained on."""
    path, written = state["file"]
    if distributed.is_main() and _written(Path(path)) != written:
        raise UserError(f"{path} was written anew while this was starting; start it again.")


def _written(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def facts(training: Training) -> dict[str, Any]:
    """What decides a result besides the settings."""
    pixels, config = training.loader.pixels, training.config
    return {
        "data fingerprint": training.shards.manifest.fingerprint,
        "statistics": (pixels.mean, pixels.std),
        "pipeline": engine(config.data.backend),
        "torch threads": torch.get_num_threads() if config.run.device == "cpu" else None,
        "ranks": distributed.world_size(),
    }


def check(state: dict[str, Any], config: Config, now: dict[str, Any], force: bool) -> None:
    """Raises UserError naming what would change the result of the checkpoint's run; with `force` only tells it.

    `config` is resolved and `now` its `facts`. Epochs may be raised where the schedule does not know their number.
    """
    # A setting that is younger than the checkpoint was at its default.
    saved = from_dict(state["config"]).to_dict()
    before, changed = {**state["facts"], "pipeline": recorded_engine(state["facts"]["pipeline"])}, []
    for name, is_, was in (
        ("model", config.model.model, saved["model"]["model"]),
        ("optimizer", config.training.optimizer, saved["training"]["optimizer"]),
    ):
        if is_ != was:
            raise UserError(f"The checkpoint is of {name} {was}, not {is_}; start another run for that.")
    for part in ("data", "model", "training", "run"):
        for name, is_ in config.to_dict()[part].items():
            was = saved[part][name]
            if name not in FREE and is_ != was and not _more_epochs(config, name, was):
                changed.append(f"{name} is {is_} and was {was}")
    if _kind(config.run.device) != _kind(saved["run"]["device"]):
        changed.append(f"device is {config.run.device} and was {saved['run']['device']}")
    free = {"ranks"}
    if now["ranks"] != before["ranks"]:
        # Slices and sums differ anyway.
        free.add("torch threads")
        say(f"{before['ranks']} ranks before, {now['ranks']} now: BatchNorm sees other slices of a batch.")
    for name in now.keys() - free:
        if now[name] != before[name]:
            changed.append(f"{name} is {now[name]} and was {before[name]}")
    if not changed:
        return
    what = "; ".join(sorted(changed))
    if not force:
        raise UserError(f"Going on would change the result: {what}; set it back, or take --resume-force.")
    say(f"Going on with another result: {what}.")


def _more_epochs(config: Config, name: str, before: int) -> bool:
    return name == "epochs" and config.training.schedule == "restarts" and config.training.epochs > before


def _kind(device: str) -> str:
    return device.split(":")[0]
