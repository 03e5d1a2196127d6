"""The command line: options and nothing else. Commands import torch and DALI in their bodies, so --help is fast."""

import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from . import __version__
from .config import MAX_FOLDS
from .core.errors import FileError, UserError, is_out_of_memory
from .core.files import masked, printable
from .data.emnist import ORIENTATIONS, SPLITS
from .data.named_sets import SETS
from .options import ConfigCommand, ModelPath, PlainPath, RecipeName, chosen, config_options, uses_gpu, with_flags
from .runs.group import MAX_SEEDS

_RUN = PlainPath(exists=True, file_okay=False, path_type=Path)
_RUN_OR_BUILTIN = ModelPath(exists=True, file_okay=False, path_type=Path)
_MODEL = ModelPath(exists=True, path_type=Path)
_FILE = PlainPath(dir_okay=False, path_type=Path)
_FOLDER = PlainPath(path_type=Path)
_LOGGER = logging.getLogger("emnist_dali")  # of core.progress, which would import tqdm


def _set_level(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    """For the rest of this command, whose lines, bars and errors the level decides."""
    if given:
        before = _LOGGER.level or logging.INFO
        _LOGGER.setLevel(logging.WARNING if param.name == "quiet" else logging.DEBUG)
        ctx.find_root().call_on_close(lambda: _LOGGER.setLevel(before))


def _is_quiet() -> bool:
    return _LOGGER.level > logging.INFO


def _verbosity() -> list[click.Option]:
    shared = {"is_flag": True, "expose_value": False, "callback": _set_level}
    return [
        click.Option(["-q", "--quiet"], help="Print only results and errors.", **shared),
        click.Option(["-v", "--verbose"], help="Print also what auto became, and an error's traceback.", **shared),
    ]


def _trust(ctx: click.Context, param: click.Parameter, paths: tuple[str, ...]) -> None:
    from .models.import_path import trust

    for path in paths:
        trust(path)


_trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="MODULE:FACTORY",
    expose_value=False,
    callback=_trust,
    help="Import this network of your own where a run was trained with it.",
)


class _Group(click.Group):
    def add_command(self, command: click.Command, name: str | None = None) -> None:
        command.params += _verbosity()  # before or after the command's name
        super().add_command(command, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a project's work, not alphabetical

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        if args is None:
            _open_closed_streams()
            args, sys.argv[1:] = sys.argv[1:], map(masked, sys.argv[1:])  # env.json and W&B record the command
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                with suppress(OSError):  # the descriptor may be a pipe by now
                    stream.reconfigure(errors="replace")  # for characters that the console cannot encode
        try:
            return super().main(args, *rest, **options)
        finally:
            try:
                sys.stdout.flush()
            except OSError:  # a full disk; Python would report it again, with a traceback
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _sentences():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _sentences():
            return super().invoke(ctx)


def _open_closed_streams() -> None:
    """Opens the standard streams that were closed with `>&-`, so that no file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


@contextmanager
def _sentences() -> Iterator[None]:
    """Turns errors that a user can cause into one line on stderr, without control characters."""
    try:
        yield
    except click.ClickException as error:
        error.message = _line(error.message)
        raise
    except UserError as error:
        _trace()
        text = str(error) if isinstance(error, FileError) else with_flags(str(error))
        raise click.ClickException(_line(text)) from error
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if sentence := _system_error(error):
            _trace()
            raise click.ClickException(_line(sentence)) from error
        raise


def _trace() -> None:
    """Prints where the error that is being handled comes from, for --verbose."""
    if _LOGGER.isEnabledFor(logging.DEBUG):
        click.echo("\n".join(map(_line, traceback.format_exc().rstrip().split("\n"))), err=True)


def _system_error(error: Exception) -> str | None:
    """A sentence on what the operating system refused or the installation lacks; None for any other error."""
    if is_out_of_memory(error):
        return "Out of memory; lower --batch-size or --image-size, or close other programs."
    if "can't start new thread" in str(error):
        return "No more threads can be started; close other programs, or raise `ulimit -u`."
    if isinstance(error, ModuleNotFoundError) and not (error.name or "emnist_dali").startswith("emnist_dali"):
        return f"{error.name} is not installed, which this command needs; pip install emnist-dali, without --no-deps."
    if "torchvision::nms" in str(error):
        return "torchvision is built for another torch than the installed one; install both from one index."
    # click handles a closed pipe; an OSError without strerror does not come from the system.
    if not isinstance(error, OSError) or error.errno == errno.EPIPE or error.strerror is None:
        return None
    where = error.filename or "A file"
    return f"{where} cannot be used ({error.strerror}); check its permissions and the free space."


def _line(text: str) -> str:
    """`text` on one printable line, without passwords; a text longer than 2,000 characters loses its middle."""
    text = printable(masked(text))
    return text if len(text) <= 2000 else f"{text[:1000]} … {text[-900:]}"


def _print(text: Any) -> None:
    """Prints lines to stdout, without control characters."""
    click.echo("\n".join(map(printable, str(text).split("\n"))))


@click.group(
    cls=_Group,
    params=_verbosity(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
def main() -> None:
    """Train on EMNIST, fast: packed shards, a DALI pipeline on the GPU, EfficientNet."""


@main.command(short_help="Pack a split into shards, once.")
@click.option(
    "--split",
    default="balanced",
    show_default=True,
    help=f"One of {', '.join(SPLITS)}; of {', '.join(SETS)}; or a name for data of your own.",
)
@click.option(
    "--source",
    help="official (downloaded), glyphs (drawn), or a path to idx, CSV, .npz, .mat or parquet files, NIST's zips or "
    "a folder of images.  [default: what is prepared, else official]",
)
@click.option("--data-dir", default="data", show_default=True, type=_FOLDER, help="Folder of the prepared splits.")
@click.option(
    "--size",
    type=click.IntRange(8, 1024),
    help="Side in pixels to which a folder of images is resized.  [default: 28]",
)
@click.option(
    "--orientation",
    type=click.Choice(ORIENTATIONS),
    help="How the source holds its images, which are packed upright.  [default: found out, and said]",
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Draw test images from the train images of a source that has none.",
)
@click.option("--verify", is_flag=True, help="Hash every shard, even those unchanged since the last check.")
@click.option("--force", is_flag=True, help="Pack again, replacing what was prepared from any source.")
def prepare(split: str, source: str | None, data_dir: Path, verify: bool, force: bool, **options: Any) -> None:
    """Pack a split into shards, once.

    \b
    emnist-dali prepare --split balanced
    """
    from .data.prepare import prepare

    prepare(split, source, data_dir, check=verify, force=force, **options)


@main.command(short_help="Show the images in the shards, and what the model sees.")
@click.option("--split", default="balanced", show_default=True, help="EMNIST split, or the name of your own dataset.")
@click.option("--class", "character", help="Only this class.")
@click.option("--augment", is_flag=True, help="Also warp and mix the images, as the recipe does in training.")
@click.option("--recipe", type=RecipeName(), default="auto", show_default=True)
@click.option("--image-size", type=int, help="[default: the recipe's]")
@click.option("--source", help="As in prepare.")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: data]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--out", type=_FILE, help="HTML file to write.  [default: runs/inspect-<split>.html]")
def inspect(split: str, character: str | None, augment: bool, recipe: str, out: Path | None, **options: Any) -> None:
    """Write an HTML page on what is in the shards and what the model sees of it, stage by stage.

    \b
    emnist-dali inspect --split balanced --class A --augment
    """
    from .reports.inspect_report import write_inspect_report

    config, _ = chosen(recipe, split, "cpu")
    out = out or Path("runs") / f"inspect-{split}.html"
    _print(write_inspect_report(config.override({**options, "device": "cpu"}), character, augment, out))


@main.command(cls=ConfigCommand, short_help="Train, validate after each epoch, test once at the end.")
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
    from .core import distributed
    from .core.progress import say
    from .reports.run_report import write_report
    from .training.dry_run import describe, describe_group
    from .training.group import find_group, group_of, train_group
    from .training.resume import find, load
    from .training.session import train

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
                _print("\n".join([*([f"# {why}"] if why else []), settings, "", with_flags(about)]))
            return
        if group:
            train_group(group, resume_force)
        path = group.path if group else train(config, state, resume_force).path
        if distributed.is_main():
            try:
                say(f"Report: {write_report([path], None)}")
            except UserError as error:  # the run itself is complete
                say(f"No report: {error}")
            if _is_quiet():
                _print(path)


@main.command(short_help="List the runs in a folder: accuracy, time, what is unfinished.")
@click.argument("folder", type=_FOLDER, default="runs")
@click.option(
    "--sort",
    type=click.Choice(["started", "name", "accuracy", "time", "recipe", "data"]),
    default="started",
    show_default=True,
    help="started: the latest first; accuracy: the best first, tested runs before others; time: the shortest first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array on the last line, with one object per run.")
def runs(folder: Path, sort: str, as_json: bool) -> None:
    """List the runs and groups in FOLDER, runs/ by default, and in the folders there.

    \b
    emnist-dali runs --sort accuracy
    """
    from .runs.listing import list_runs, table

    rows = list_runs(folder, sort)
    _print(json.dumps(rows) if as_json else table(rows, folder))


@main.group(name="recipe", cls=_Group, short_help="List the recipes, or show one and where its numbers come from.")
def recipe_group() -> None:
    """List the recipes, or show one and where its numbers come from.

    \b
    emnist-dali recipe list
    emnist-dali recipe show cpu
    """


@recipe_group.command("list", short_help="A line on each recipe.")
def recipe_list() -> None:
    """A line on each recipe.

    \b
    emnist-dali recipe list
    """
    from .recipe_text import listing

    _print(listing())


@recipe_group.command("show", short_help="A recipe as a file that --recipe takes.")
@click.argument("name", type=RecipeName())
@click.option("--split", help="Recipes differ by split.  [default: balanced, or the file's]")
@click.option("--device", help="cuda or cpu, which decides what auto and fast are.  [default: auto]")
def recipe_show(name: str, split: str | None, device: str | None) -> None:
    """Print a recipe, or a file with one, as TOML that --recipe takes, with the source of each number.

    \b
    emnist-dali recipe show cpu > mine.toml
    emnist-dali train --recipe mine.toml
    """
    from .recipe_text import shown

    _print(shown(name, split, uses_gpu(name, device)))


@main.command(short_help="Print the metrics of a run, or of an ensemble of runs.")
@click.argument("runs", nargs=-1, required=True, type=_RUN_OR_BUILTIN)
@click.option("--split", help="Another split with the same classes.  [default: the run's]")
@click.option("--data-dir", type=_FOLDER, help="Folder of the prepared splits.  [default: the run's]")
@click.option("--validation", is_flag=True, help="Use the run's validation images instead of the test split.")
@click.option(
    "--robustness",
    is_flag=True,
    help="Print the accuracy on corrupted test images instead: blur, noise, strokes, rotation and others.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as a JSON object on the last line.")
@_trust_option
def evaluate(
    runs: tuple[Path, ...],
    split: str | None,
    data_dir: Path | None,
    validation: bool,
    robustness: bool,
    as_json: bool,
) -> None:
    """Print the metrics of a run's best weights, or of several runs' averaged probabilities, such as a group's.

    \b
    emnist-dali evaluate runs/balanced-cpu-20261122-160000
    emnist-dali evaluate builtin --robustness
    """
    if robustness:
        _robustness(runs, split, data_dir, validation, as_json)
        return
    from .evaluation.evaluate import DETAILS, details, evaluate, summary

    results = evaluate(runs, split, data_dir, validation)
    for part, result in results.items():
        _print(summary(part, result))
        _print(details(result))
    if as_json:
        names = ("accuracy", "weighted_f1", "macro_f1", "per_class", "images", *DETAILS)
        result = results["validation" if validation else "test"]
        _print(json.dumps({name: result[name] for name in names}))


def _robustness(
    runs: tuple[Path, ...], split: str | None, data_dir: Path | None, validation: bool, as_json: bool
) -> None:
    if validation:
        raise click.UsageError("--robustness is measured on the test split; leave out --validation.")
    from .evaluation.robustness import measure_robustness, table

    result = measure_robustness(runs, split, data_dir)
    _print(table(result))
    if as_json:
        _print(json.dumps(result))


@main.command(short_help="Test whether runs, or groups of them, differ significantly.")
@click.argument("runs", nargs=-1, required=True, type=_RUN)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on the last line.")
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Test whether runs differ on the same test images: intervals, and for each pair McNemar's test, or Welch's
    t-test where one is a group; corrected for the number of pairs (Holm).

    \b
    emnist-dali compare runs/a runs/b
    """
    if len(runs) < 2:
        raise click.UsageError("Name two runs or more.")
    from .evaluation.significance import compare, table

    result = compare(*runs)
    _print(table(result))
    if as_json:
        _print(json.dumps(result))


@main.command(short_help="Write an HTML report on a run, or on several side by side.")
@click.argument("runs", nargs=-1, required=True, type=_RUN)
@click.option("--out", type=_FILE, help="File to write.  [default: report.html in the first run's folder]")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML report on a run, or on several, or groups, side by side; it needs no network to view.

    \b
    emnist-dali report runs/a runs/b --out report.html
    """
    from .reports.run_report import write_report

    _print(write_report(runs, out))


@main.command(short_help="Recognize the characters in image files.")
@click.argument("images", nargs=-1, required=True, metavar="[MODEL] IMAGES...")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Predictions per image of one character."
)
@click.option("--text", is_flag=True, help="Read all characters of each image: separated handwriting, line by line.")
@click.option("--boxes", type=click.IntRange(1, 1000), metavar="N", help="Read a form's row of N boxes.")
@click.option("--allow", metavar="CHARACTERS", help="Only these are possible, for example 0-9A-F.")
@click.option(
    "--pattern",
    help="What each line is: 9 for a digit, A for a letter, * for any character, and others as they are: 99-99-9999.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0.9, 0.999),
    metavar="SHARE",
    help="Instead of the --top predictions, the smallest set that holds the true one in 0.9 to 0.999 of images.",
)
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Refuse, with a question mark, what is less probable or looks like no character.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with one object per image.")
@click.option("--show", type=_FILE, help="PNG file to write: each image, what the model saw of it, its predictions.")
@_trust_option
def predict(
    images: tuple[str, ...],
    top: int,
    text: bool,
    boxes: int | None,
    allow: str | None,
    pattern: str | None,
    coverage: float | None,
    min_probability: float | None,
    as_json: bool,
    show: Path | None,
) -> None:
    """Recognize characters. MODEL is a run folder, an exported .onnx or hf://USER/NAME, or left out for the built-in
    model; IMAGES are files, folders or globs, one character per image, dark on light or light on dark. With --text,
    --boxes or --pattern an image has several.

    \b
    emnist-dali predict photo.jpg
    emnist-dali predict --text page.jpg
    emnist-dali predict --boxes 8 --allow 0-9 form.png
    emnist-dali predict runs/balanced-cpu-20261122-160000 photo.jpg scans/
    """
    from .deploy.emnist_style import SEVERAL
    from .deploy.predict import format_table, format_texts, model_and_images, predict, predict_text

    several = text or boxes is not None or pattern is not None
    of_one = {"--show": show, "--coverage": coverage, "--min-probability": min_probability}
    if several and (given := [option for option, value in of_one.items() if value is not None]):
        raise click.UsageError(f"{given[0]} is for images of one character; leave out --text, --boxes and --pattern.")
    model, pictures = model_and_images(images)
    if pictures == images and not _is_quiet():
        click.echo(f"Reading with {model}, the model in the package.", err=True)
    if several:
        answers, errors = predict_text(model, pictures, allow, pattern, boxes)
    else:
        answers, errors = predict(model, pictures, top, show, allow, coverage, min_probability)
    formatted = format_texts if several else format_table
    _print(json.dumps(answers) if as_json else formatted(answers))
    for answer in answers:
        if warning := answer.get("warning"):
            advice = "; --text reads them all" if warning == SEVERAL else ""
            click.echo(_line(f"{answer['path']}: {warning}{advice}."), err=True)
    for message in errors:
        click.echo(_line(message), err=True)
    if errors:
        raise SystemExit(1)


@main.command(short_help="Export a run's best weights to ONNX, pt2, safetensors or a web page.")
@click.argument("run", type=_RUN_OR_BUILTIN)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "pt2", "safetensors", "web"]),
    default="onnx",
    show_default=True,
    help="web: a folder with a page to draw on, whose model runs in the browser.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="ONNX or web in 8-bit integers, calibrated on training images: a quarter as large.",
)
@click.option(
    "--output",
    type=_FOLDER,
    help="File to write, or folder for web.  [default: model.<format>, model-int8.onnx or web, in the run's folder]",
)
@_trust_option
def export(run: Path, kind: str, int8: bool, output: Path | None) -> None:
    """Export a run's best weights, checked against the trained model; ONNX and pt2 take raw uint8 images. RUN is a
    run folder, or builtin for the model in the package.

    ONNX and web need pip install 'emnist-dali[export]'.

    \b
    emnist-dali export runs/balanced-cpu-20261122-160000 --format onnx
    emnist-dali export builtin --output model.onnx
    emnist-dali export builtin --format web --output site
    """
    if kind == "web":
        from .deploy.export_web import export_web

        lines = export_web(run, output, int8=int8)
    else:
        from .deploy.export import export

        lines = export(run, kind, output, int8=int8)
    for line in lines:
        _print(line)


@main.command(short_help="Push a run to the Hugging Face Hub.")
@click.argument("run", type=_RUN_OR_BUILTIN)
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="If the repository is missing, create it as a private one.")
@_trust_option
def push(run: Path, repo: str, private: bool) -> None:
    """Push a run's best weights, settings, metrics and model card to the repository USER/NAME of the Hugging Face
    Hub, which is created if it is missing; with pip install 'emnist-dali[export]' also an ONNX file. RUN is a run
    folder, or builtin for the model in the package. `predict` and `serve hf://USER/NAME` read with it.

    \b
    emnist-dali push runs/balanced-cpu-20261122-160000 user/name
    """
    from .deploy.push import push

    for line in push(run, repo, private=private):
        _print(line)


@main.command(short_help="Serve a page to draw characters on, and an HTTP API.")
@click.argument("model", type=_MODEL, default="builtin")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free port.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="IP address to serve on; with 0.0.0.0, phones and other machines in this network can use it.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Another site whose pages can use it from a browser, such as https://example.org; repeatable.",
)
@_trust_option
def serve(model: Path | str, port: int, host: str, allow_origin: tuple[str, ...]) -> None:
    """Recognize characters drawn in the browser, or sent by POST: docs/serve.md. MODEL is a run folder, an exported
    .onnx or hf://USER/NAME, or left out for the built-in model.

    Needs pip install 'emnist-dali[serve]'.

    \b
    emnist-dali serve
    emnist-dali serve runs/balanced-cpu-20261122-160000 --host 0.0.0.0
    """
    from .deploy.serve import serve

    serve(model, port, host, allow_origin)


@main.command(cls=ConfigCommand, short_help="Search for better settings of a recipe.")
@click.option("--recipe", type=RecipeName(), default="auto", show_default=True)
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Number in the whole sweep.")
@click.option(
    "--space",
    multiple=True,
    help="Dimension to search: optimizer, lr, weight-decay, schedule, mixing or image-size; repeatable.  "
    "[default: all that no option fixes]",
)
@click.option(
    "--storage",
    default="sqlite:///sweep.db",
    show_default=True,
    help="Database that all workers of a sweep share.",
)
@click.option("--name", help="Name of the sweep in its storage.  [default: <split>-<recipe>]")
@click.option("--out", type=_FOLDER, help="Folder of the trials.  [default: runs/sweep-<name>]")
@config_options("out")
def sweep(
    recipe: str,
    trials: int,
    space: tuple[str, ...],
    storage: str,
    name: str | None,
    out: Path | None,
    values: dict[str, Any],
) -> None:
    """Search for better settings by validation accuracy; run it again to continue, or several times in parallel.

    Needs pip install 'emnist-dali[sweep]'.

    \b
    emnist-dali sweep --split balanced --trials 50 --epochs 3
    """
    from .core.progress import say
    from .tools.sweep import sweep

    config, why = chosen(recipe, values.get("data.split"), values.get("run.device"))
    say(why)
    config = config.override(values)
    name = name or f"{config.data.split}-{config.recipe}"
    fixed = {path.split(".")[1] for path in values}
    _print(sweep(config, trials, space, storage, name, out or Path("runs") / f"sweep-{name}", fixed))


@main.command(short_help="List training images whose labels look wrong.")
@click.option("--split", default="balanced", show_default=True, help="Split whose training images are examined.")
@click.option("--recipe", type=RecipeName(), default="auto", show_default=True)
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    default=4,
    show_default=True,
    help="Folds; each is left out of one training.",
)
@click.option("--out", type=_FOLDER, help="Folder to write to.  [default: runs/audit-<split>]")
@click.option("--source", help="As in prepare.")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: data]")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
def audit(split: str, recipe: str, folds: int, out: Path | None, **options: Any) -> None:
    """List the training images whose labels look wrong, with a gallery. Needs pip install 'emnist-dali[audit]'.

    \b
    emnist-dali audit --split balanced
    """
    from .core.progress import say
    from .tools.audit import audit, describe

    config, why = chosen(recipe, split, options["device"])
    say(why)
    out = out or Path("runs") / f"audit-{split}"
    _print(describe(audit(config.override(options), folds, out)))
    _print(f"{out / 'gallery.html'} shows them, {out / 'issues.csv'} lists them.")


@main.command(short_help="Check what this machine can do and what is missing.")
@click.option("--data-dir", default="data", show_default=True, type=_FOLDER, help="Folder of the prepared splits.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def doctor(data_dir: Path, as_json: bool) -> None:
    """Check what this machine can do and what is missing, with a line of advice for each problem.

    \b
    emnist-dali doctor
    """
    from .tools.doctor import examine, table

    checks = examine(data_dir)
    _print(json.dumps(checks) if as_json else with_flags(table(checks)))
