"""The command line: options and nothing else. torch and DALI are imported in the bodies, so --help is quick."""

import json
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from . import __version__
from .config import Config, Data, Model, Run, Training
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
    from . import ranks
    from .progress import say
    from .resume import find, load
    from .train import train

    with ranks.joined():
        checkpoint = ranks.from_main(lambda: find(resume, options["out"])) if resume else None
        if checkpoint:
            config, state = ranks.from_main(lambda: load(checkpoint, recipe, {"split": split, **options}))
        else:
            config, why = _chosen(recipe or "auto", split or "balanced", options["device"])
            config, state = config.override(options), None
            say(why)
        train(config, state, resume_force)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", help="Another split with the same classes.  [default: the run's]")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: the run's]")
@click.option("--json", "as_json", is_flag=True, help="Print the test metrics as a JSON object in the last line.")
def evaluate(runs: tuple[Path, ...], split: str | None, data_dir: str | None, as_json: bool) -> None:
    """Print the metrics of a run's best weights, or of the mean of several runs' probabilities.

    \b
    emnist-dali evaluate runs/balanced-cpu-20261122-160000
    """
    from .evaluation import DETAILS, details, evaluate_runs, summary

    results = evaluate_runs(runs, split, data_dir)
    for part, result in results.items():
        click.echo(summary(part, result))
        click.echo(details(result))
    if as_json:
        names = ("accuracy", "weighted_f1", "macro_f1", "per_class", "images", *DETAILS)
        click.echo(json.dumps({name: results["test"][name] for name in names}, ensure_ascii=False))


@main.command()
@click.argument("first", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("second", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object in the last line.")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Tell whether two runs differ on the same test images: intervals and McNemar's test.

    \b
    emnist-dali compare runs/a runs/b
    """
    from .compare import compare, table

    result = compare(first, second)
    click.echo(table(result))
    if as_json:
        click.echo(json.dumps(result))


@main.command()
@click.option("--split", default="balanced", show_default=True, help="Its training images are looked at.")
@click.option("--recipe", type=click.Choice(["auto", *RECIPES]), default="auto", show_default=True)
@click.option(
    "--folds", type=click.IntRange(2, 20), default=4, show_default=True, help="Trainings, each on the rest."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: runs/audit-<split>]")
@click.option("--source", help="As of prepare.")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: data]")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--device", help="cuda, cuda:1, cpu.  [default: auto]")
def audit(split: str, recipe: str, folds: int, out: Path | None, **options: Any) -> None:
    """List the training images whose labels look wrong, with a gallery. Needs pip install 'emnist-dali[audit]'.

    \b
    emnist-dali audit --split balanced
    """
    from .audit import audit, table
    from .progress import say

    config, why = _chosen(recipe, split, options["device"])
    say(why)
    out = out or Path("runs") / f"audit-{split}"
    say(table(audit(config.override(options), folds, out)))
    say(f"{out / 'gallery.html'} shows them, {out / 'issues.csv'} lists them.")


def _chosen(recipe: str, split: str, device: str | None) -> tuple[Config, str]:
    import torch

    on_cpu = (device or "auto").startswith("cpu") or not torch.cuda.is_available()
    return choose(recipe, split, gpu=not on_cpu)
