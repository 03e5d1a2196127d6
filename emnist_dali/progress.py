"""Progress bars and lines, of rank 0 only: bars on a terminal, for what takes more than two seconds."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

from . import ranks


def progress(iterable: Iterable | None = None, *, description: str, total: int | None = None, unit: str) -> tqdm:
    """A bar over `iterable`, or one to `update()` by hand; silent where stderr is no terminal."""
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        delay=2,
        disable=None if ranks.main() else True,
        leave=False,
    )


def say(line: str) -> None:
    """One line on stdout, above any bar."""
    if ranks.main():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
