"""The command line: options and nothing else. torch and DALI are imported in the bodies, so --help is quick."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from . import __version__
from .config import Config, Data, Model, Run, Training
from .core.errors import UserError, is_out_of_memory
from .core.files import MAX_NAME, is_plain, masked, printable
from .data.emnist import SPLITS
from .recipes import RECIPES, choose


class _Path(click.Path):
    """A path whose name no terminal obeys."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not is_plain(os.fspath(value)):
            self.fail(
                f"{value} names no file: it has control characters, is not in UTF-8, or is longer than {MAX_NAME:,}.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


_RUN = _Path(exists=True, file_okay=False, path_type=Path)
_MODEL = _Path(exists=True, path_type=Path)
_FILE = _Path(dir_okay=False, path_type=Path)
_FOLDER = _Path(path_type=Path)


class _Recipe(click.Choice):
    """A recipe's name, or a .json file with a config: a sweep's best.json, a run's config.json."""

    def __init__(self) -> None:
        super().__init__(["auto", *RECIPES])

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if value.endswith(".json") else super().convert(value, param, ctx)


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        if args is None:
            _open_closed_streams()
            args, sys.argv[1:] = sys.argv[1:], map(masked, sys.argv[1:])  # for whoever keeps the command
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                with suppress(OSError):  # one that was turned into a pipe since
                    stream.reconfigure(errors="replace")  # a console may not have every character
        try:
            return super().main(args, *rest, **options)
        finally:
            try:
                sys.stdout.flush()
            except OSError:  # a full disk; Python would say it once more, with a traceback
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _sentences():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _sentences():
            return super().invoke(ctx)


def _open_closed_streams() -> None:
    """Started with `>&-`: what is said there is lost, and no file that is written later gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


@contextmanager
def _sentences() -> Iterator[None]:
    """What a user can cause ends in one line on stderr, without anything that a terminal would obey."""
    try:
        yield
    except click.ClickException as error:
        error.message = _line(error.message)
        raise
    except UserError as error:
        raise click.ClickException(_line(str(error))) from error
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if sentence := _of_the_system(error):
            raise click.ClickException(_line(sentence)) from error
        raise


def _of_the_system(error: Exception) -> str | None:
    """A sentence on what the system refuses; None where it is something else."""
    if is_out_of_memory(error):
        return "The memory is not enough; lower --batch-size or --image-size, or end other programs."
    if "can't start new thread" in str(error):
        return "No more threads can be started; end other programs, or raise `ulimit -u`."
    # A reader that has enough is click's; what has no such text is no error of the system.
    if not isinstance(error, OSError) or error.errno == errno.EPIPE or error.strerror is None:
        return None
    where = error.filename or "A file"
    return f"{where} cannot be used ({error.strerror}); look at its permissions and the free space."


def _line(text: str) -> str:
    """`text` on one line, without passwords; of a long one, as of an argument of 100,000 characters, the ends."""
    text = printable(masked(text))
    return text if len(text) <= 2000 else f"{text[:1000]} … {text[-900:]}"


def _print(text: Any) -> None:
    """Lines on stdout, without anything that a terminal would obey."""
    click.echo("\n".join(map(printable, str(text).split("\n"))))


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
@click.option("--data-dir", default="data", show_default=True, type=_FOLDER, help="Folder of the prepared splits.")
@click.option(
    "--size",
    type=click.IntRange(8, 1024),
    help="Side to which a folder of images is resized, in pixels.  [default: 28]",
)
@click.option("--verify", is_flag=True, help="Hash every shard, also those that have not changed.")
@click.option("--force", is_flag=True, help="Pack again, in the place of what was prepared from anything.")
def prepare(split: str, source: str | None, data_dir: Path, size: int | None, verify: bool, force: bool) -> None:
    """Pack a split into shards, once.

    \b
    emnist-dali prepare --split balanced
    """
    from .data.prepare import prepare

    prepare(split, source, data_dir, size=size, check=verify, force=force)


def _config_options(*without: str) -> Callable[[Callable], Callable]:
    def add(command: Callable) -> Callable:
        for name, kind, field in reversed(list(_options())):
            if name in without:
                continue
            flag = "--" + name.replace("_", "-")
            if kind is bool:
                flag += "/--no-" + name.replace("_", "-")
            help = field.metadata["help"]
            type_ = click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind
            command = click.option(flag, name, default=None, type=type_, help=help)(command)
        return command

    return add


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
@click.option("--split", default="balanced", show_default=True, help="Split, or the name of your own images.")
@click.option("--class", "character", help="Only this class.")
@click.option("--augment", is_flag=True, help="Also warp and mix the images, as the recipe does in training.")
@click.option("--recipe", type=_Recipe(), default="auto", show_default=True)
@click.option("--image-size", type=int, help="[default: the recipe's]")
@click.option("--source", help="As of prepare.")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: data]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--out", type=_FILE, help="HTML file to write.  [default: runs/inspect-<split>.html]")
def inspect(split: str, character: str | None, augment: bool, recipe: str, out: Path | None, **options: Any) -> None:
    """Show what is in the shards and what the model sees of it, stage by stage, on one HTML page.

    \b
    emnist-dali inspect --split balanced --class A --augment
    """
    from .reports.inspect_report import write_page

    config, _ = _chosen(recipe, split, "cpu")
    out = out or Path("runs") / f"inspect-{split}.html"
    _print(write_page(config.override({**options, "device": "cpu"}), character, augment, out))


@main.command()
@click.option("--split", help=f"One of {', '.join(SPLITS)}, or your own.  [default: balanced]")
@click.option(
    "--recipe",
    type=_Recipe(),
    help="Named config, or a .json file; every other option overrides it.  [default: auto]",
)
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with a run from its last checkpoint, or from a checkpoint file; auto: with that in --out, which "
    "starts there otherwise.",
)
@click.option("--resume-force", is_flag=True, help="Also where that changes the result.")
@_config_options()
def train(split: str | None, recipe: str | None, resume: str | None, resume_force: bool, **options: Any) -> None:
    """Train, validate each epoch, test once at the end.

    \b
    emnist-dali train --split balanced
    emnist-dali train --resume runs/balanced-cpu-20261122-160000
    torchrun --nproc-per-node 8 -m emnist_dali train --split balanced
    """
    from .core import distributed
    from .core.progress import say
    from .reports.run_report import write_report
    from .training.resume import find, load
    from .training.session import train

    with distributed.process_group():
        checkpoint = (
            distributed.broadcast_from_main(lambda: find(resume, options["out"])) if resume is not None else None
        )
        if checkpoint:
            config, state = distributed.broadcast_from_main(
                lambda: load(checkpoint, recipe, {"split": split, **options})
            )
        else:
            config, why = _chosen(recipe or "auto", split, options["device"])
            config, state = config.override(options), None
            say(why)
        run = train(config, state, resume_force)
        if distributed.is_main():
            try:
                say(f"Report: {write_report([run.path], None)}")
            except UserError as error:  # the training itself is safe
                say(f"No report: {error}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=_RUN)
@click.option("--split", help="Another split with the same classes.  [default: the run's]")
@click.option("--data-dir", type=_FOLDER, help="Folder of the prepared splits.  [default: the run's]")
@click.option("--validation", is_flag=True, help="The run's held-out images instead of the test.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as a JSON object in the last line.")
def evaluate(
    runs: tuple[Path, ...], split: str | None, data_dir: Path | None, validation: bool, as_json: bool
) -> None:
    """Print the metrics of a run's best weights, or of the mean of several runs' probabilities.

    \b
    emnist-dali evaluate runs/balanced-cpu-20261122-160000
    """
    from .evaluation.evaluate import DETAILS, details, evaluate, summary

    results = evaluate(runs, split, data_dir, validation)
    for part, result in results.items():
        _print(summary(part, result))
        _print(details(result))
    if as_json:
        names = ("accuracy", "weighted_f1", "macro_f1", "per_class", "images", *DETAILS)
        result = results["validation" if validation else "test"]
        _print(json.dumps({name: result[name] for name in names}))


@main.command()
@click.argument("first", type=_RUN)
@click.argument("second", type=_RUN)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object in the last line.")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Tell whether two runs differ on the same test images: intervals and McNemar's test.

    \b
    emnist-dali compare runs/a runs/b
    """
    from .evaluation.significance import compare, table

    result = compare(first, second)
    _print(table(result))
    if as_json:
        _print(json.dumps(result))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=_RUN)
@click.option("--out", type=_FILE, help="File to write.  [default: report.html in the first run's folder]")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one HTML page on a run, or on several side by side; it opens from disk, without network.

    \b
    emnist-dali report runs/a runs/b --out report.html
    """
    from .reports.run_report import write_report

    _print(write_report(runs, out))


@main.command()
@click.argument("model", type=_MODEL)
@click.argument("images", nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Answers an image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, an object an image.")
@click.option("--show", type=_FILE, help="PNG file: each picture, what was made of it, and the answer.")
def predict(model: Path, images: tuple[str, ...], top: int, as_json: bool, show: Path | None) -> None:
    """Read characters: MODEL is a run folder or an exported .onnx; images are files, folders or globs, one character
    each, dark on light or light on dark.

    \b
    emnist-dali predict runs/balanced-cpu-20261122-160000 photo.jpg scans/
    """
    from .deploy.predict import predict, table

    answers, failed = predict(model, images, top, show)
    _print(json.dumps(answers) if as_json else table(answers))
    for message in failed:
        click.echo(_line(message), err=True)
    if failed:
        raise SystemExit(1)


@main.command()
@click.argument("run", type=_RUN)
@click.option(
    "--format", "kind", type=click.Choice(["onnx", "pt2", "safetensors"]), default="onnx", show_default=True
)
@click.option("--output", type=_FILE, help="File to write.  [default: model.<format> in the run's folder]")
def export(run: Path, kind: str, output: Path | None) -> None:
    """Write a run's best weights for others, checked against the trainer; ONNX and pt2 take raw uint8 images.

    Needs pip install 'emnist-dali[export]' for ONNX.

    \b
    emnist-dali export runs/balanced-cpu-20261122-160000 --format onnx
    """
    from .deploy.export import export

    for line in export(run, kind, output):
        _print(line)


@main.command()
@click.argument("model", type=_MODEL)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
def serve(model: Path, port: int) -> None:
    """Draw characters in the browser, or POST them: a page on 127.0.0.1. Needs pip install 'emnist-dali[serve]'.

    \b
    emnist-dali serve runs/balanced-cpu-20261122-160000
    """
    from .deploy.serve import serve

    serve(model, port)


@main.command()
@click.option("--split", default="balanced", show_default=True, help=f"One of {', '.join(SPLITS)}, or your own.")
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Of the whole sweep.")
@click.option("--recipe", type=_Recipe(), default="auto", show_default=True)
@click.option(
    "--space",
    multiple=True,
    help="Searched: optimizer, lr, weight-decay, schedule, mixing or image-size; repeatable.  "
    "[default: all that no option fixes]",
)
@click.option(
    "--storage", default="sqlite:///sweep.db", show_default=True, help="Database that all workers of a sweep share."
)
@click.option("--name", help="Of the sweep in its storage.  [default: <split>-<recipe>]")
@click.option("--out", type=_FOLDER, help="Folder of the trials.  [default: runs/sweep-<name>]")
@_config_options("out")
def sweep(
    split: str,
    trials: int,
    recipe: str,
    space: tuple[str, ...],
    storage: str,
    name: str | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Search a recipe's settings by validation accuracy; run it again, or beside itself, to go on.

    Needs pip install 'emnist-dali[sweep]'.

    \b
    emnist-dali sweep --split balanced --trials 50 --epochs 3
    """
    from .core.progress import say
    from .tools.sweep import sweep

    config, why = _chosen(recipe, split, options["device"])
    say(why)
    name = name or f"{split}-{config.recipe}"
    given = {option for option, value in options.items() if value is not None}
    say(sweep(config.override(options), trials, space, storage, name, out or Path("runs") / f"sweep-{name}", given))


@main.command()
@click.option("--split", default="balanced", show_default=True, help="Its training images are looked at.")
@click.option("--recipe", type=_Recipe(), default="auto", show_default=True)
@click.option(
    "--folds", type=click.IntRange(2, 20), default=4, show_default=True, help="Trainings, each on the rest."
)
@click.option("--out", type=_FOLDER, help="Folder to write to.  [default: runs/audit-<split>]")
@click.option("--source", help="As of prepare.")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: data]")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--device", help="cuda, cuda:1, cpu.  [default: auto]")
def audit(split: str, recipe: str, folds: int, out: Path | None, **options: Any) -> None:
    """List the training images whose labels look wrong, with a gallery. Needs pip install 'emnist-dali[audit]'.

    \b
    emnist-dali audit --split balanced
    """
    from .core.progress import say
    from .tools.audit import audit, table

    config, why = _chosen(recipe, split, options["device"])
    say(why)
    out = out or Path("runs") / f"audit-{split}"
    say(table(audit(config.override(options), folds, out)))
    say(f"{out / 'gallery.html'} shows them, {out / 'issues.csv'} lists them.")


@main.command()
@click.option("--data-dir", default="data", show_default=True, type=_FOLDER, help="Folder of the prepared splits.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def doctor(data_dir: Path, as_json: bool) -> None:
    """Tell what this machine can do and what is missing, with a line of advice for each problem.

    \b
    emnist-dali doctor
    """
    from .tools.doctor import examine, table

    found = examine(data_dir)
    _print(json.dumps(found) if as_json else table(found))


def _chosen(recipe: str, split: str | None, device: str | None) -> tuple[Config, str]:
    import torch

    on_cpu = (device or "auto").startswith("cpu") or not torch.cuda.is_available()
    return choose(recipe, split, gpu=not on_cpu)
