from pathlib import Path
from typing import Any

import click

from .options import FOLDER, RecipeName, chosen
from .program import print_lines


@click.command(short_help="List training images whose labels look wrong.")
@click.option("--split", help="Split whose training images are examined.  [default: balanced, or the recipe file's]")
@click.option("--recipe", type=RecipeName(), default="auto", show_default=True)
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    default=4,
    show_default=True,
    help="Folds; each is left out of one training.",
)
@click.option("--out", type=FOLDER, help="Folder to write to.  [default: runs/audit-<split>]")
@click.option("--source", help="As in prepare.")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: data]")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
def audit(split: str | None, recipe: str, folds: int, out: Path | None, **options: Any) -> None:
    """List the training images whose labels look wrong, with a gallery. Needs pip install 'emnist-dali[audit]'.

    \b
    emnist-dali audit --split balanced
    """
    from ..core.progress import say
    from ..tools.audit import audit, describe

    config, why = chosen(recipe, split, options["device"])
    say(why)
    out = out or Path("runs") / f"audit-{config.data.split}"
    print_lines(describe(audit(config.override(options), folds, out)))
    print_lines(f"{out / 'gallery.html'} shows them, {out / 'issues.csv'} lists them.")
