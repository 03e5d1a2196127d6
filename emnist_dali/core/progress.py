"""Progress bars and lines of output, on rank 0 only; bars only on a terminal and after two seconds."""

import errno
import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

from . import distributed
from .files import printable


def progress(iterable: Iterable | None = None, *, description: str, total: int | None = None, unit: str) -> tqdm:
    """A bar over `iterable`, or one to `update()` manually; silent where stderr is not a terminal."""
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


def say(text: str) -> None:
    """Prints one or more lines on stdout, above any bar. Once stdout is gone, output is dropped."""
    if not distributed.is_main():
        return
    escaped = "\n".join(map(printable, text.split("\n")))
    try:
        tqdm.write(escaped, file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:  # not worth ending a training run for
        if error.errno != errno.ENOSPC:  # a closed pipe or terminal never comes back; a full disk may
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
