import json
from pathlib import Path

import click

from .options import RUN
from .program import print_lines


@click.command(short_help="Test whether runs, or groups of them, differ significantly.")
@click.argument("runs", nargs=-1, required=True, type=RUN)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on the last line.")
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Test whether runs differ on the same test images: intervals, and for each pair McNemar's test, or Welch's
    t-test where one is a group; corrected for the number of pairs (Holm).

    \b
    emnist-dali compare runs/a runs/b
    """
    if len(runs) < 2:
        raise click.UsageError("Name two runs or more.")
    from ..evaluation.significance import compare, table

    result = compare(*runs)
    print_lines(table(result))
    if as_json:
        print_lines(json.dumps(result))
