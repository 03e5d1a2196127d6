from pathlib import Path

import click

from .options import FILE, RUN
from .program import print_lines


@click.command(short_help="Write an HTML report on a run, or on several side by side.")
@click.argument("runs", nargs=-1, required=True, type=RUN)
@click.option("--out", type=FILE, help="File to write.  [default: report.html in the first run's folder]")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML report on a run, or on several, or groups, side by side; it needs no network to view.

    \b
    emnist-dali report runs/a runs/b --out report.html
    """
    from ..reports.run_report import write_report

    print_lines(write_report(runs, out))
