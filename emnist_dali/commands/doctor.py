import json
from pathlib import Path

import click

from .options import FOLDER, with_flags
from .program import print_lines


@click.command(short_help="Check what this machine can do and what is missing.")
@click.option("--data-dir", default="data", show_default=True, type=FOLDER, help="Folder of the prepared splits.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def doctor(data_dir: Path, as_json: bool) -> None:
    """Check what this machine can do and what is missing, with a line of advice for each problem.

    \b
    emnist-dali doctor
    """
    from ..tools.doctor import examine, table

    checks = examine(data_dir)
    print_lines(json.dumps(checks) if as_json else with_flags(table(checks)))
