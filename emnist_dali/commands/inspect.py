from pathlib import Path
from typing import Any

import click

from .options import FILE, RecipeName, chosen
from .program import print_lines


@click.command(short_help="Show the images in the shards, and what the model sees.")
@click.option(
    "--split", help="EMNIST split, or the name of your own dataset.  [default: balanced, or the recipe file's]"
)
@click.option("--class", "character", help="Only this class.")
@click.option("--augment", is_flag=True, help="Also warp and mix the images, as the recipe does in training.")
@click.option("--recipe", type=RecipeName(), default="auto", show_default=True)
@click.option("--image-size", type=int, help="[default: the recipe's]")
@click.option("--source", help="As in prepare.")
@click.option("--data-dir", help="Folder of the prepared splits.  [default: data]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--out", type=FILE, help="HTML file to write.  [default: runs/inspect-<split>.html]")
def inspect(
    split: str | None, character: str | None, augment: bool, recipe: str, out: Path | None, **options: Any
) -> None:
    """Write an HTML page on what is in the shards and what the model sees of it, stage by stage.

    \b
    emnist-dali inspect --split balanced --class A --augment
    """
    from ..reports.inspect_report import write_inspect_report

    config, _ = chosen(recipe, split, "cpu")
    out = out or Path("runs") / f"inspect-{config.data.split}.html"
    print_lines(write_inspect_report(config.override({**options, "device": "cpu"}), character, augment, out))
