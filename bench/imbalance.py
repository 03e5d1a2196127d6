#!/usr/bin/env python
"""What to do about imbalanced classes: nothing, class weights, logit adjustment or balanced sampling.

python bench/imbalance.py --seeds 3 --json bench/records/imbalance-cpu-2-cores.json

Trains `fast` at its CPU size, with the net `emnist_fast_flat` in batches of 512 at a rate of 0.03, on the whole train
split of ByClass with each method and seed. Which is best depends on the aim: the test images as they are (accuracy),
or every class as much as the others (balanced accuracy, macro F1). Runs that the file at --json holds are not
repeated. The last line is a JSON document.
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

METHODS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "class weights": {"class_weights": True},
    "logit adjustment": {"logit_adjustment": 1.0},
    "balanced sampling": {"balanced_sampling": True},
}
METRICS = ("accuracy", "weighted_f1", "balanced_accuracy", "macro_f1")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="byclass", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--epochs", type=click.IntRange(1), help="[default: the recipe's]")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Seeds 0, 1, 2, …")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Result file to write, or to continue.")
def main(split: str, seeds: int, json_file: Path | None, **data: Any) -> None:
    """What to do about imbalanced classes: nothing, class weights, logit adjustment or balanced sampling."""
    plain = {
        "class_weights": False,
        "logit_adjustment": 0.0,
        "model": "emnist_fast_flat",
        "batch_size": 512,
        "lr": 0.03,
    }
    try:
        base = recipes.fast_cpu(split).override({**data, **plain, "device": "cpu", "val_fraction": 0.0})
        configs = {method: resolve(base.override(changes)) for method, changes in METHODS.items()}
        document = comparison.measure("imbalance", configs, seeds, json_file)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(comparison.table(document, METRICS))
    click.echo(json.dumps(document, ensure_ascii=False))


if __name__ == "__main__":
    main()
