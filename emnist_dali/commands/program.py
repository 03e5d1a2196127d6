"""What all commands share: -q and -v, errors as sentences, and printing without control characters."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from ..core.errors import FileError, UserError, is_out_of_memory
from ..core.files import masked, printable
from .options import with_flags

_LOGGER = logging.getLogger("emnist_dali")  # of core.progress, which would import tqdm


def _set_level(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    """For the rest of this command, whose lines, bars and errors the level decides."""
    if given:
        before = _LOGGER.level or logging.INFO
        _LOGGER.setLevel(logging.WARNING if param.name == "quiet" else logging.DEBUG)
        ctx.find_root().call_on_close(lambda: _LOGGER.setLevel(before))


def is_quiet() -> bool:
    return _LOGGER.level > logging.INFO


def verbosity() -> list[click.Option]:
    shared = {"is_flag": True, "expose_value": False, "callback": _set_level}
    return [
        click.Option(["-q", "--quiet"], help="Print only results and errors.", **shared),
        click.Option(["-v", "--verbose"], help="Print also what auto became, and an error's traceback.", **shared),
    ]


class Group(click.Group):
    def add_command(self, command: click.Command, name: str | None = None) -> None:
        command.params += verbosity()  # before or after the command's name
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
        error.message = one_line(error.message)
        raise
    except UserError as error:
        _trace()
        text = str(error) if isinstance(error, FileError) else with_flags(str(error))
        raise click.ClickException(one_line(text)) from error
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if sentence := _system_error(error):
            _trace()
            raise click.ClickException(one_line(sentence)) from error
        raise


def _trace() -> None:
    """Prints where the error that is being handled comes from, for --verbose."""
    if _LOGGER.isEnabledFor(logging.DEBUG):
        click.echo("\n".join(map(one_line, traceback.format_exc().rstrip().split("\n"))), err=True)


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


def one_line(text: str) -> str:
    """`text` on one printable line, without passwords; a text longer than 2,000 characters loses its middle."""
    text = printable(masked(text))
    return text if len(text) <= 2000 else f"{text[:1000]} … {text[-900:]}"


def print_lines(text: Any) -> None:
    """Prints lines to stdout, without control characters."""
    click.echo("\n".join(map(printable, str(text).split("\n"))))
