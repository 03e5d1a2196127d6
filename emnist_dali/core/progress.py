"""Progress bars and lines, of rank 0 only: bars on a terminal, for what takes more than two seconds."""

import errno
import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

from . import distributed
from .files import printable


def progress(iterable: Iterable | None = None, *, description: str, total: int | None = None, unit: str) -> tqdm:
    """A bar over `iterable`, or one to `update()` by hand; silent where stderr is no terminal."""
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        delay=2,
        disable=None if distributed.is_main() else True,
        leave=False,
    )


def say(line: str) -> None:
    """A line, or several, on stdout, above any bar. Where nobody reads them any more, what is said is lost."""
    if not distributed.is_main():
        return
    shown = "\n".join(map(printable, line.split("\n")))
    try:
        tqdm.write(shown, file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:  # no reason to end a training
        if error.errno != errno.ENOSPC:  # a pipe that was closed, a terminal that is gone: nobody will ever read it
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
