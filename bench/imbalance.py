#!/usr/bin/env python
"""What to do about imbalanced classes: nothing, class weights, logit adjustment or balanced sampling.

python bench/imbalance.py --seeds 3 --json bench/records/imbalance-cpu-2-cores.json

Trains `fast` at its CPU size on the whole train split of ByClass with each method and seed; the test split is read
once a run. Which is best depends on the aim: the test images as they are (accuracy), or every class as much as the
others (balanced accuracy, macro F1). Runs that the file at --json holds are not repeated. The last line is a JSON
document.
"""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

import stage_timers
import time_to_accuracy
from emnist_dali import recipes
from emnist_dali.config import Config, from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.core.machine import environment
from emnist_dali.options import with_flags
from emnist_dali.runtime import resolve
from emnist_dali.training.build import training_shards
from result_file import check_result_file, write_result_file
from speedrun.run import commit

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
    try:
        base = recipes.fast_cpu(split).override({**data, "device": "cpu", "val_fraction": 0.0})
        document = measure(
            resolve(base.override({"class_weights": False, "logit_adjustment": 0.0})), seeds, json_file
        )
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(base: Config, seeds: int, json_file: Path | None = None) -> dict[str, Any]:
    """The document of all methods, with seeds from 0; raises UserError if the file's runs are of something else."""
    shards = training_shards(base)
    document = {
        "benchmark": "imbalance",
        "machine": environment(base.run.device),
        "data": stage_timers.data_description(shards),
        "fingerprint": shards.manifest.fingerprint,
        "config": base.to_dict(),
        "runs": [],
    }
    check_result_file(json_file, "imbalance")
    if json_file and json_file.exists():
        found = read_json(json_file)
        config = from_dict(found["config"])
        if (found["fingerprint"], config.identity()) != (document["fingerprint"], base.identity()):
            raise UserError(f"{json_file} is of other data or another config; choose another --json.")
        document = found
    done = {(run["method"], run["seed"]) for run in document["runs"]}
    for seed in range(seeds):  # the table is complete after each seed
        for method in METHODS:
            if (method, seed) not in done:
                click.echo(f"{method}:")
                began = commit()
                result = time_to_accuracy.run(base.override({**METHODS[method], "seed": seed}), shards)
                document["runs"].append({"method": method, **result, "commit": began})
                if json_file:
                    write_result_file(json_file, document)
    return document


def table(document: dict[str, Any]) -> str:
    """Markdown: mean ± standard deviation over the seeds, in %; F1 scores as they are."""
    lines = ["| method | seeds | accuracy, % | weighted F1 | balanced accuracy, % | macro F1 |", "|---" * 6 + "|"]
    for method in METHODS:
        runs = [run for run in document["runs"] if run["method"] == method]
        cells = [method, str(len(runs))]
        for metric in METRICS:
            values = [run[metric] for run in runs]
            scale, digits = (1, 4) if metric.endswith("f1") else (100, 2)
            cells.append(f"{scale * mean(values):.{digits}f} ± {scale * stdev(values):.{digits}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
