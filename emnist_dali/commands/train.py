from typing import Any

import click

from ..config import MAX_FOLDS
from ..core.errors import UserError
from ..runs.group import MAX_SEEDS
from .options import ConfigCommand, RecipeName, chosen, config_options, with_flags
from .program import is_quiet, print_lines


@click.command(cls=ConfigCommand, short_help="Train, validate after each epoch, test once at the end.")
@click.option(
    "--recipe",
    type=RecipeName(),
    help="Named config, or a JSON, TOML or YAML file; options override it. With --help, its values are shown as "
    "defaults.  [default: auto]",
)
@click.option(
    "--resume",
    metavar="RUN",
    help="Resume a run from its last checkpoint, or from a checkpoint file; auto: resume the run in --out, or start "
    "it there.",
)
@click.option("--resume-force", is_flag=True, help="Resume even if the result will differ.")
@click.option(
    "--seeds",
    type=click.IntRange(2, MAX_SEEDS),
    help="Train so many runs as a group, with seeds from --seed on; the same command resumes it.",
)
@click.option(
    "--folds",
    type=click.IntRange(2, MAX_FOLDS),
    help="Train so many runs as a group, each validated on another part of the training images.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only print the settings, the steps, and about how long and how much memory."
)
@config_options()
def train(
    recipe: str | None,
    resume: str | None,
    resume_force: bool,
    dry_run: bool,
    seeds: int | None,
    folds: int | None,
    values: dict[str, Any],
) -> None:
    """Train, validate after each epoch, test once at the end.

    \b
    emnist-dali train --split balanced
    emnist-dali train --recipe cpu --set training.ema=0.995
    emnist-dali train --resume runs/balanced-cpu-20261122-160000
    emnist-dali train --split balanced --seeds 3
    torchrun --nproc-per-node 8 -m emnist_dali train --split balanced
    """
    if sum(option is not None for option in (seeds, folds, resume)) > 1:
        raise click.UsageError("Give one of --seeds, --folds and --resume: a group's own command resumes it.")
    from ..core import distributed
    from ..core.progress import say
    from ..reports.run_report import write_report
    from ..training.dry_run import describe, describe_group
    from ..training.group import find_group, group_of, train_group
    from ..training.resume import find, load
    from ..training.session import train

    with distributed.process_group():
        checkpoint, group, why = None, None, ""
        if resume is not None:
            group = distributed.broadcast_from_main(lambda: find_group(resume, recipe, values))
        if resume is not None and not group:
            checkpoint = distributed.broadcast_from_main(lambda: find(resume, values.get("run.out")))
        if group:
            config, state = group.config, None
        elif checkpoint:
            config, state = distributed.broadcast_from_main(lambda: load(checkpoint, recipe, values))
        else:
            config, why = chosen(recipe or "auto", values.get("data.split"), values.get("run.device"))
            config, state = config.override(values), None
            if not dry_run:
                say(why)
            if seeds or folds:
                group = group_of(config, "seeds" if seeds else "folds", seeds or folds)
        if dry_run:
            done = state["step"] if state else None
            settings, about = describe_group(group) if group else describe(config, done)
            if distributed.is_main():  # what is printed can be a recipe
                print_lines("\n".join([*([f"# {why}"] if why else []), settings, "", with_flags(about)]))
            return
        if group:
            train_group(group, resume_force)
        path = group.path if group else train(config, state, resume_force).path
        if distributed.is_main():
            try:
                say(f"Report: {write_report([path], None)}")
            except UserError as error:  # the run itself is complete
                say(f"No report: {error}")
            if is_quiet():
                print_lines(path)
