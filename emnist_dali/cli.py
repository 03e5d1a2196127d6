"""The command line: options and nothing else. torch and DALI are imported in the bodies, so --help is quick."""

import json
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from . import __version__
from .config import Data, Model, Run, Training
from .errors import UserError
from .recipes import RECIPES, choose
from .splits import SPLITS


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Train on EMNIST, fast: packed shards, a DALI pipeline on the GPU, EfficientNet."""


@main.command()
@click.option("--split", default="balanced", show_default=True, help=f"One of {', '.join(SPLITS)}.")
@click.option(
    "--source",
    help="official (NIST), glyphs (drawn), or a path to idx files, gzip.zip or a folder of images.  "
    "[default: what is prepared, else official]",
)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option(
    "--size",
    type=click.IntRange(8, 1024),
    default=28,
    show_default=True,
    help="Side to which a folder of images is resized, in pixels.",
)
@click.option("--verify", is_flag=True, help="Check the hash of every shard.")
@click.option("--force", is_flag=True, help="Pack again, from another source too.")
def prepare(split: str, source: str | None, data_dir: str, size: int, verify: bool, force: bool) -> None:
    """Pack a split into shards, once.

    \b
    emnist-dali prepare --split balanced
    """
    from .prepare import prepare

    prepare(split, source, data_dir, size=size, check=verify, force=force)


def _config_options(command: Callable) -> Callable:
    for name, kind, field in reversed(list(_options())):
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            flag += "/--no-" + name.replace("_", "-")
        help = field.metadata["help"]
        type_ = click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind
        command = click.option(flag, name, default=None, type=type_, help=help)(command)
    return command


def _options() -> Iterator[tuple[str, Any, Field]]:
    for part in (Data, Model, Training, Run):
        hints = get_type_hints(part)
        for field in fields(part):
            if "help" in field.metadata and field.name != "split":
                kind = hints[field.name]
                if isinstance(kind, UnionType):
                    kind = next(k for k in get_args(kind) if k is not NoneType)
                yield field.name, kind, field


@main.command()
@click.option("--split", help=f"One of {', '.join(SPLITS)}, or your own.  [default: balanced]")
@click.option(
    "--recipe",
    type=click.Choice(["auto", *RECIPES]),
    help="Named config; every other option overrides it.  [default: auto]",
)
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with a run from its last checkpoint, or from a checkpoint file; auto: with that in --out, which "
    "starts there otherwise.",
)
@click.option("--resume-force", is_flag=True, help="Also where that changes the result.")
@_config_options
def train(split: str | None, recipe: str | None, resume: str | None, resume_force: bool, **options: Any) -> None:
    """Train, validate each epoch, test once at the end.

    \b
    emnist-dali train --split balanced
    emnist-dali train --resume runs/balanced-cpu-20261122-160000
    torchrun --nproc-per-node 8 -m emnist_dali train --split balanced
    """
    import torch

    from . import ranks
    from .progress import say
    from .resume import find, load
    from .train import train

    with ranks.joined():
        checkpoint = ranks.from_main(lambda: find(resume, options["out"])) if resume else None
        if checkpoint:
            config, state = ranks.from_main(lambda: load(checkpoint, recipe, {"split": split, **options}))
        else:
            on_cpu = (options["device"] or "auto").startswith("cpu") or not torch.cuda.is_available()
            config, why = choose(recipe or "auto", split or "balanced", gpu=not on_cpu)
            config, state = config.override(options), None
            say(why)
        train(config, state, resume_force)


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", help="Another split with the same classes.  [default: the run's]")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: the run's]")
@click.option("--json", "as_json", is_flag=True, help="Print the test metrics as a JSON object in the last line.")
def evaluate(run: Path, split: str | None, data_dir: str | None, as_json: bool) -> None:
    """Print the metrics of a run's best weights.

    \b
    emnist-dali evaluate runs/balanced-cpu-20261122-160000
    """
    from .evaluation import evaluate_run, summary

    results = evaluate_run(run, split, data_dir)
    for part, result in results.items():
        click.echo(summary(part, result))
    if as_json:
        names = ("accuracy", "weighted_f1", "macro_f1", "per_class", "images")
        click.echo(json.dumps({name: results["test"][name] for name in names}, ensure_ascii=False))
