"""Settings as the command line has them: options, `--set`, help by part, and flags in messages."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from ..config import RENAMED_RECIPES, Config, parse, settings
from ..core.documents import is_document
from ..core.errors import UserError
from ..core.files import MAX_NAME, is_plain
from ..recipes import RECIPES, choose, unknown_recipe
from ..weights import located


def flag(path: str) -> str:
    """What sets a setting: `--lr` for `training.lr`, `--set training.ema` for one without an option."""
    return f"--{path.partition('.')[2].replace('_', '-')}" if settings()[path].help else f"--set {path}"


def with_flags(text: str) -> str:
    """An error message with flags instead of the settings' dotted paths; file names stay as they are."""
    paths = "|".join(re.escape(path) for path in sorted(settings(), reverse=True))  # the longest first
    return re.sub(rf"(?<![\w./\\'\"-])(?:{paths})(?![\w/\\-]|\.\w)", lambda match: flag(match[0]), text)


class PlainPath(click.Path):
    """A path whose name is safe to print on a terminal."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not is_plain(os.fspath(value)):
            self.fail(
                f"{value} is not a valid file name: it contains control characters, is not UTF-8, or is longer than "
                f"{MAX_NAME:,}.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class ModelPath(PlainPath):
    """A run folder or an exported file, or `builtin` for the model in the package.

    Where a file will do, so does an `hf://user/name`, which stays a string, for `load_classifier`.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        from ..runs.hub import PREFIX, is_address  # imports numpy

        if is_address(value):
            if self.file_okay:
                return value
            repo = value.removeprefix(PREFIX)
            self.fail(
                f"{value} is read by predict, serve and load_classifier only; `hf download {repo} --local-dir "
                "FOLDER` makes it a run folder.",
                param,
                ctx,
            )
        return super().convert(located(value), param, ctx)


RUN = PlainPath(exists=True, file_okay=False, path_type=Path)
RUN_OR_BUILTIN = ModelPath(exists=True, file_okay=False, path_type=Path)
MODEL = ModelPath(exists=True, path_type=Path)
FILE = PlainPath(dir_okay=False, path_type=Path)
FOLDER = PlainPath(path_type=Path)


class RecipeName(click.Choice):
    """A recipe's name, or a file with settings: one by hand, a sweep's best.json, a run's config.json."""

    def __init__(self) -> None:
        super().__init__(["auto", *RECIPES])

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in RENAMED_RECIPES:
            self.fail(unknown_recipe(value), param, ctx)
        return value if is_document(value) else super().convert(value, param, ctx)


class _Assignment(click.ParamType):
    """`training.ema=0.99` as ("training.ema", 0.99)."""

    name = "assignment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        path, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value} is not of the form SETTING=VALUE.", param, ctx)
        try:
            return path, parse(path, text)
        except UserError as error:
            self.fail(str(error), param, ctx)


class _SettingOption(click.Option):
    """The option of the setting at `path`."""

    def __init__(self, *arguments: Any, path: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.path = path


def config_options(*without: str) -> Callable[[Callable], Callable]:
    """Adds an option for each setting with `help`, except the fields `without`, and --set.

    The command gets what the user gave as one dict `values` by path, for `Config.override`.
    """
    paths = {path.partition(".")[2]: path for path, setting in settings().items() if setting.help}
    paths = {name: path for name, path in paths.items() if name not in without}

    def add(command: Callable) -> Callable:
        @wraps(command)
        def with_values(*arguments: Any, assignments: Sequence[tuple[str, Any]], **options: Any) -> Any:
            given = {path: options.pop(name) for name, path in paths.items()}
            values = {path: value for path, value in given.items() if value not in (None, ())}
            return command(*arguments, values=values | dict(assignments), **options)

        for name, path in reversed(paths.items()):
            with_values = _option(name, path)(with_values)
        return click.option(
            "--set",
            "assignments",
            multiple=True,
            type=_Assignment(),
            metavar="SETTING=VALUE",
            help="Any setting by its path, such as training.ema=0.99 or training.mixing=none; repeatable.",
        )(with_values)

    return add


def _option(name: str, path: str) -> Callable[[Callable], Callable]:
    kind, _, help = settings()[path]
    several = get_origin(kind) is tuple
    kind = get_args(kind)[0] if several else kind
    return click.option(
        f"{flag(path)}/--no-{flag(path)[2:]}" if kind is bool else flag(path),
        name,
        cls=_SettingOption,
        path=path,
        type=click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind,
        default=None,
        multiple=several,
        help=help,
    )


class ConfigCommand(click.Command):
    """A command with `config_options`: help lists them by part, with the values of the given recipe as defaults."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options, *_ = self.make_parser(ctx).parse_args(list(args))  # all of them: --help ends the second parse early
        ctx.meta["recipe"] = [
            value if isinstance(value := options.get(name), str) else None for name in ("recipe", "split", "device")
        ]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        name, *machine = ctx.meta["recipe"]
        config = None
        if name in ("auto", *RECIPES) or is_document(name or ""):
            config, _ = chosen(name, *machine)
            ctx.show_default = True
            ctx.default_map = {
                path.partition(".")[2]: value for path, value in _leaves(config) if path != "data.split"
            }
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                title = param.path.partition(".")[0].title() if isinstance(param, _SettingOption) else "Options"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        with formatter.section("Settings that only --set reaches"):
            formatter.write_text(", ".join(_only_by_assignment(config)))


def _only_by_assignment(config: Config | None) -> Iterator[str]:
    """`training.ema=0.99`, or `training.ema` without a config."""
    if config is None:
        yield from (path for path, setting in settings().items() if not setting.help)
        return
    for path, value in _leaves(config):
        if not settings()[path].help:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield f"{path}={text.lower()}"


def _leaves(config: Config) -> Iterator[tuple[str, Any]]:
    """Path and value of every setting that is not a group of others; a group that is missing is None."""
    for path in settings():
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name, MISSING)
        if value is not MISSING and not is_dataclass(value):
            yield path, value


def chosen(recipe: str, split: str | None, device: str | None) -> tuple[Config, str]:
    """`recipes.choose` for this machine."""
    return choose(recipe, split, uses_gpu(recipe, device))


def uses_gpu(recipe: str, device: str | None) -> bool:
    """Whether the recipe is chosen for a GPU; torch is imported only for those that depend on it, and for files."""
    if (device or "").startswith("cpu") or not (recipe in ("auto", "fast") or is_document(recipe)):
        return False
    from ..runtime import has_gpu

    return has_gpu()


def _trust(ctx: click.Context, param: click.Parameter, paths: tuple[str, ...]) -> None:
    from ..models.import_path import trust

    for path in paths:
        trust(path)


trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="MODULE:FACTORY",
    expose_value=False,
    callback=_trust,
    help="Import this network of your own where a run was trained with it.",
)
