#!/usr/bin/env python
"""`published` and `improved` on their own net, with as little as a CPU can do: equal images, batches and epochs.

python bench/improvement.py --seeds 3 --json bench/records/improvement-cpu-2-cores.json

EfficientNet-B2 on 32×32 images, with a stem that keeps their side, from random weights: the pretrained ones, and with
them the two recipes' ways to fit the stem, are not compared. Both schedules keep their shape: warm-up and cycles have
the same share of the epochs as in the recipe. The last line is a JSON document.
"""

import json
from pathlib import Path
from typing import Any

import click

import comparison
from emnist_dali import recipes
from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.options import with_flags
from emnist_dali.runtime import resolve
from emnist_dali.training.build import training_shards

METRICS = ("accuracy", "macro_f1")
SMALL = {"pretrained": False, "stem_stride": 1, "image_size": 32, "batch_size": 128, "accumulation": 1}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--model", default="efficientnet_b2", show_default=True, help="Any timm model with a stem of stride 2.")
@click.option("--images", type=click.IntRange(1), default=10_000, show_default=True, help="Of the train split.")
@click.option("--epochs", type=click.IntRange(2), default=5, show_default=True)
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Seeds 0, 1, 2, …")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Result file to write, or to continue.")
def main(images: int, seeds: int, json_file: Path | None, split: str, epochs: int, **changes: Any) -> None:
    """The recipes published and improved on the same small part of the data, for the same time."""
    try:
        base = resolve(recipes.published(split).override({**changes, "device": "cpu", "amp": "native"}))
        held_out = max(1 - images / len(training_shards(base)), 0)
        small = {**SMALL, **changes, "device": "cpu", "amp": "native", "val_fraction": held_out}
        configs = {
            name: resolve(shortened(recipes.recipe(name, split), epochs).override(small))
            for name in ("published", "improved")
        }
        document = comparison.measure("improvement", configs, seeds, json_file)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(comparison.table(document, METRICS))
    click.echo(json.dumps(document, ensure_ascii=False))


def shortened(config: Config, epochs: int) -> Config:
    """`config` for `epochs`, its warm-up and cycles of the same share of them."""
    training = config.training
    scale = epochs / training.epochs
    every = max(round(scale * training.restart_every), 1)  # whole epochs
    return config.override({"epochs": epochs, "warmup": scale * training.warmup, "restart_every": every})


if __name__ == "__main__":
    main()
