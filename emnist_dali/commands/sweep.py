from pathlib import Path
from typing import Any

import click

from .options import FOLDER, ConfigCommand, RecipeName, chosen, config_options
from .program import print_lines


@click.command(cls=ConfigCommand, short_help="Search for better settings of a recipe.")
@click.option("--recipe", type=RecipeName(), default="auto", show_default=True)
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Number in the whole sweep.")
@click.option(
    "--space",
    multiple=True,
    help="Dimension to search: optimizer, lr, weight-decay, schedule, mixing or image-size; repeatable.  "
    "[default: all that no option fixes]",
)
@click.option(
    "--storage",
    default="sqlite:///sweep.db",
    show_default=True,
    help="Database that all workers of a sweep share.",
)
@click.option("--name", help="Name of the sweep in its storage.  [default: <split>-<recipe>]")
@click.option("--out", type=FOLDER, help="Folder of the trials.  [default: runs/sweep-<name>]")
@config_options("out")
def sweep(
    recipe: str,
    trials: int,
    space: tuple[str, ...],
    storage: str,
    name: str | None,
    out: Path | None,
    values: dict[str, Any],
) -> None:
    """Search for better settings by validation accuracy; run it again to continue, or several times in parallel.

    Needs pip install 'emnist-dali[sweep]'.

    \b
    emnist-dali sweep --split balanced --trials 50 --epochs 3
    """
    from ..core.progress import say
    from ..tools.sweep import sweep

    config, why = chosen(recipe, values.get("data.split"), values.get("run.device"))
    say(why)
    config = config.override(values)
    name = name or f"{config.data.split}-{config.recipe}"
    fixed = {path.split(".")[1] for path in values}
    print_lines(sweep(config, trials, space, storage, name, out or Path("runs") / f"sweep-{name}", fixed))
