#!/usr/bin/env python
"""`published` and `improved` with EfficientNet-B2, at a size that a CPU can train: equal images, batches and epochs.

python bench/improvement.py --seeds 3 --json bench/records/improvement-cpu-2-cores.json

32×32 images and a stem that keeps their side; about --images of the train split, in batches of 32 at the recipes'
rates, which are for 1,024: 180 steps of 128 teach both next to nothing. From random weights: the pretrained
ones, and with them the recipes' two ways to fit the stem, are not compared. The schedules are the recipes' own, with
all their epochs. The last line is a JSON document.
"""

import json
from pathlib import Path
from typing import Any

import click

import comparison
from emnist_dali import recipes
from emnist_dali.commands.options import with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.runtime import resolve
from emnist_dali.training.build import training_shards

METRICS = ("accuracy", "macro_f1")
SMALL = {
    "pretrained": False, "stem_stride": 1, "image_size": 32, "batch_size": 32, "accumulation": 1, "device": "cpu",
}  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--model", default="efficientnet_b2", show_default=True, help="Any timm model with a stem of stride 2.")
@click.option("--images", type=click.IntRange(1), default=1_200, show_default=True, help="Of the train split.")
@click.option("--epochs", type=click.IntRange(1), help="[default: the recipes']")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Seeds 0, 1, 2, …")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Result file to write, or to continue.")
def main(images: int, seeds: int, json_file: Path | None, split: str, **changes: Any) -> None:
    """The recipes published and improved on the same small part of the data."""
    try:
        bases = [make(split).override({**SMALL, **changes}) for make in (recipes.published, recipes.improved)]
        held_out = max(1 - images / len(training_shards(bases[0])), 0)
        configs = {base.recipe: resolve(base.override({"val_fraction": held_out})) for base in bases}
        document = comparison.measure("improvement", configs, seeds, json_file)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(comparison.table(document, METRICS))
    click.echo(json.dumps(document, ensure_ascii=False))


if __name__ == "__main__":
    main()
