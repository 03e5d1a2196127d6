import json
from pathlib import Path

import click

from .options import FOLDER
from .program import print_lines


@click.command(short_help="List the runs in a folder: accuracy, time, what is unfinished.")
@click.argument("folder", type=FOLDER, default="runs")
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
    from ..runs.listing import list_runs, table

    rows = list_runs(folder, sort)
    print_lines(json.dumps(rows) if as_json else table(rows, folder))
