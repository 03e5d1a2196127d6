"""`emnist-dali` in this process: how an attack on the command line is made and judged."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from emnist_dali.cli import main
from emnist_dali.core.files import is_plain

from .tally import tried

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate")
# Where a library may keep compiled code, and devices that take anything.
ELSEWHERE = ("__pycache__", "torchinductor", "emnist-dali-kernels-", "/numba", "/proc/self", "/dev/shm", "/dev/null")

_allowed: list[str] = []


class HarmError(Exception):
    """Something is to be written where the command has no business."""


def _watch(event: str, arguments: tuple) -> None:
    """Forbids it before it happens."""
    if not _allowed:
        return
    if event in CHANGING or (event == "open" and (arguments[2] or 0) & WRITING):
        paths = arguments[:1]
    elif event in ("os.rename", "os.link", "os.symlink"):
        paths = arguments[:2]
    else:
        return
    for path in paths:
        if isinstance(path, str | os.PathLike):
            # What a rename or a removal acts on is a link itself, not what it leads to.
            path = os.path.join(os.path.realpath(os.path.dirname(os.fspath(path)) or "."), os.path.basename(path))
            path = os.path.realpath(path) if event == "open" else path
            if not path.startswith(_allowed[0]) and not any(part in path for part in ELSEWHERE):
                raise HarmError(f"{event} {path!a}")


sys.addaudithook(_watch)


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Nothing may be written outside of `folder`."""
    _allowed.append(os.path.realpath(folder))
    try:
        yield
    finally:
        _allowed.clear()


def attempt(folder: Path, *arguments: Any) -> Result:
    """The command, which ends as it should; it may write in `folder` only."""
    given = [argument if isinstance(argument, str) else str(argument) for argument in arguments]
    tried()
    with kept_in(folder):
        result = CliRunner().invoke(main, given)
    judge(result, sentences=1000 if given[:1] == ["predict"] else 1)  # one a picture
    return result


def judge(result: Result, sentences: int = 1) -> None:
    """0, or 1 and a sentence, or 2 and click's lines; nothing that a terminal would obey."""
    if result.exception and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{result.exception!r:.500}") from result.exception
    assert result.exit_code in (0, 1, 2), result.exit_code
    for line in (result.stdout + result.stderr).split("\n"):
        assert is_plain(line), f"{line!a:.300}"
        assert len(line) < 6_000
    said = [line for line in result.stderr.split("\n") if line]
    if result.exit_code == 1:
        assert 1 <= len(said) <= sentences, said
        assert all(line.endswith(".") for line in said), said
    if result.exit_code == 2:
        assert said[-1].startswith("Error: "), said
