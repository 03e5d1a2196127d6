"""Progress bars and lines of output, on rank 0 only; bars only on a terminal and after two seconds.

The level of the logger `emnist_dali` decides: INFO, the default, prints lines and bars, WARNING neither, and DEBUG
details as well. Its handler prints on stdout.
"""

import errno
import logging
import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

from . import distributed
from .files import printable


class _Stdout(logging.Handler):
    """Prints above any bar. Once stdout is gone, output is dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write("\n".join(map(printable, record.getMessage().split("\n"))), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:  # not worth ending a training run for
            if error.errno != errno.ENOSPC:  # a closed pipe or terminal never comes back; a full disk may
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115


_logger = logging.getLogger("emnist_dali")
_logger.addHandler(_Stdout())
_logger.propagate = False  # an application that logs to its terminal would print each line twice
if _logger.level == logging.NOTSET:  # the root's level, WARNING, would apply
    _logger.setLevel(logging.INFO)


def progress(
    iterable: Iterable | None = None, *, description: str, total: float | None = None, unit: str, initial: int = 0
) -> tqdm:
    """A bar over `iterable`, or one to `update()` manually, with the time left; silent where stderr is no terminal.

    `initial` of `total` were done before.
    """
    return tqdm(
        iterable,
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=True,
        delay=2,
        disable=None if distributed.is_main() and _logger.isEnabledFor(logging.INFO) else True,
        leave=False,
    )


def say(text: str) -> None:
    """Prints one or more lines on stdout."""
    _log(logging.INFO, text)


def detail(text: str) -> None:
    """Prints what only somebody who looks for a reason wants to know: with --verbose."""
    _log(logging.DEBUG, text)


def _log(level: int, text: str) -> None:
    if distributed.is_main():
        _logger.log(level, "%s", text)
