#!/usr/bin/env python
"""What each idea of the speed run gives alone: one change of the row's recipe at a time, over several seeds.

python bench/speedrun/ideas.py --seeds 3 --json bench/speedrun/ideas-3-seeds.json

A fifth of the train images is held out, and ideas are judged by balanced accuracy on them; test accuracies, read once
a run, are shown and do not decide. Run folders, resuming and the result file are those of bench/ablation.py. The last
line is a JSON document.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ablation
from emnist_dali import recipes
from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.options import with_flags


def _with(**values: Any) -> Callable[[Config], Config]:
    return lambda config: config.override(values)


IDEAS: dict[str, Callable[[Config], Config]] = {
    "fast": lambda config: config,
    "3 epochs": _with(epochs=3),
    "20×20 images": _with(image_size=20),
    "28×28 images": _with(image_size=28),
    "convolutions to the end, max pooling": _with(model="emnist_fast_small"),
    "a third convolution that is padded and halves the side": _with(model="emnist_fast_flat"),
    "the same at 1.5 times the width": _with(model="emnist_fast_wide"),
    "class weights instead of logit adjustment": _with(class_weights=True, logit_adjustment=0.0),
    "balanced sampling instead of logit adjustment": _with(balanced_sampling=True, logit_adjustment=0.0),
    "no warps": _with(**{"data.affine": None}),
    "warps of twice the size": _with(**{"data.affine": recipes.WARPS}),
    "256 images a step at 0.02": _with(batch_size=256, lr=0.02),
    "1,024 images a step at 0.04": _with(batch_size=1024, lr=0.04),
    "momentum 0.95": _with(momentum=0.95),
    "a rate of 0.02": _with(lr=0.02),
    "a rate of 0.045": _with(lr=0.045),
    "label smoothing 0.2": _with(label_smoothing=0.2),
    "no averaged weights": _with(**{"training.ema": None}),
    "AdamW": _with(optimizer="adamw", lr=6e-3),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--idea", "names", multiple=True, type=click.Choice([*IDEAS]), help="Only this; repeatable.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds: 0, 1, 2, …")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--out", type=click.Path(path_type=Path), default="runs/ideas", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Result file to write, or to continue.")
def main(names: tuple[str, ...], seeds: int, split: str, out: Path, json_file: Path | None, **data: Any) -> None:
    """What each idea of the speed run gives alone."""
    base = recipes.fast_cpu(split).override({**data, "device": "cpu", "val_fraction": 0.2})
    try:
        configs = {name: IDEAS[name](base) for name in dict.fromkeys(("fast", *(names or IDEAS)))}
        document = ablation.measure(configs, seeds, out, json_file)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(ablation.table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


if __name__ == "__main__":
    main()
