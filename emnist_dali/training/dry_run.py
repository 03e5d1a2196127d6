"""What a training would be: its settings, steps, time and memory. It leaves nothing behind."""

import os
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from statistics import median
from time import perf_counter

import torch

from ..config import Config
from ..core import distributed, machine
from ..core.text import duration
from ..data.manifest import MANIFEST
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..data.stats import Stats
from ..loading.loader import Loader
from ..loading.validation import validation_images
from ..recipe_text import to_toml
from ..runs.file_names import is_run
from ..runs.folder import check_can_create
from ..runs.group import Group
from ..runtime import resolve
from . import memory, tracking
from .build import build_training
from .group import check_can_train

# Micro-batches that are timed; fewer where these take longer than SECONDS.
TIMED = 12
SECONDS = 15


class _EnoughError(Exception):
    """The timing has taken SECONDS."""


def describe(config: Config, done: int | None = None) -> tuple[str, str]:
    """The resolved settings as TOML, and comments on steps, time and memory of a training.

    `done` steps are past, None for a run that has not begun. The time is that of a few steps on this machine now,
    without validation and test; it takes data that have been prepared. Raises UserError as `train` does, except for
    weights that it would download, and for what would change the result of a run that has begun.
    """
    resolved = resolve(config)
    tracking.check_installed(resolved)
    if done is None:
        distributed.broadcast_from_main(lambda: check_can_create(resolved.run.out))
    about = []
    folder = split_folder(config.data.data_dir, config.data.split, config.data.source)
    if os.path.exists(folder / MANIFEST):
        about += _measured(resolved, Shards(folder, "train"), done)
    else:
        about.append(f"Steps and time are not known: {folder} is not prepared. `emnist-dali prepare` does that.")
    if resolved.run.device != "cpu" or memory.peak_bytes(config):
        about.append(memory.describe(config, machine.gpu_memory(config.run.device), distributed.world_size()))
    return to_toml(resolved), "\n".join(f"# {line}" for line in about)


def describe_group(group: Group) -> tuple[str, str]:
    """The same of the first of a group's runs, whose settings differ only in the seed or the fold."""
    distributed.broadcast_from_main(lambda: check_can_train(group))
    folder, config = next(iter(group.members.items()))
    settings, about = describe(config, 0 if is_run(folder) else None)
    return f"# {group.number} runs, each as follows.\n{settings}", about


def _measured(config: Config, shards: Shards, done: int | None) -> list[str]:
    """Lines on steps, time and memory, from a few micro-batches."""
    training = config.training
    few = replace(config, training=replace(training, accumulation=1, steps=TIMED))
    stats = Stats(0.5, 0.5, config.data.equalize)  # the time does not depend on them, and nothing is written
    indices, *_ = validation_images(shards, config.data, training.seed)
    steps_per_epoch = len(Loader.from_config(shards, config, indices=indices, stats=stats)) // training.accumulation
    times: list[float] = []

    def after_step() -> None:
        if config.run.device != "cpu":
            torch.cuda.synchronize()
        times.append(perf_counter())
        if len(times) > 2 and times[-1] - times[0] > SECONDS and distributed.world_size() == 1:
            raise _EnoughError

    from_file = done is None and config.model.weights is not None  # the hub's are not downloaded
    with build_training(few, shards, from_checkpoint=not from_file, stats=stats) as timed:
        prepared = timed.trainer.warm_up()
        with suppress(_EnoughError):
            timed.trainer.train_epoch(timed.loader, after_step)
    steps = min(training.steps or training.epochs * steps_per_epoch, training.epochs * steps_per_epoch)
    left = max(steps - (done or 0), 0)
    gaps = [after - before for before, after in pairwise(times)]
    lines = [
        f"{steps:,} steps of {config.data.batch_size * training.accumulation:,} images: {training.epochs} epochs of "
        f"{steps_per_epoch:,}{f'; {left:,} are left' if done else ''}."
    ]
    if gaps:
        step = training.accumulation * median(gaps)
        lines.append(
            f"About {duration(prepared + left * step)} on {config.run.device}, without validation and test: "
            f"{step:.2g} s a step in {len(gaps)} micro-batches timed just now, beside whatever else runs here."
        )
    peak = machine.peak_memory() if config.run.device == "cpu" else torch.cuda.max_memory_allocated()
    if peak:
        of = "This process" if config.run.device == "cpu" else "PyTorch"
        lines.append(f"{of} took {peak / 2**30:.1f} GiB of {'the GPU' if of == 'PyTorch' else 'memory'} for them.")
    return lines
