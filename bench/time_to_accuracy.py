#!/usr/bin/env python
"""Seconds of training to a test accuracy, over several seeds.

python bench/time_to_accuracy.py --recipe fast --target 0.895 --runs 5

Trains a recipe of fixed length from scratch with each seed, on the whole train split: nothing is chosen by
validation, and the test split is read once per run, after the clock has stopped. The clock runs from the first
batch to the final weights; preparing the data, compiling and warming up are reported separately. The target is
reached if the mean over the runs reaches it. The last line is a JSON document.
"""

import json
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import click
import torch

import stage_timers
from emnist_dali.commands.options import with_flags
from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.evaluation.inference import predict
from emnist_dali.evaluation.metrics import score
from emnist_dali.loading.loader import Loader, with_backend
from emnist_dali.recipes import RECIPES, choose
from emnist_dali.runtime import autocast, resolve
from emnist_dali.training.build import build_training, training_shards
from result_file import check_result_file, write_result_file


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--recipe", type=click.Choice([*RECIPES]), default="fast", show_default=True)
@click.option("--target", type=click.FloatRange(0, 1), default=0.90, show_default=True, help="Test accuracy.")
@click.option("--runs", type=click.IntRange(2), default=5, show_default=True, help="With seeds 0, 1, 2, …")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(recipe: str, target: float, runs: int, split: str, json_file: Path | None, **options: Any) -> None:
    """Seconds of training to a test accuracy, mean and standard deviation over several seeds."""
    device = options["device"] or "auto"
    config, _ = choose(recipe, split, gpu=torch.cuda.is_available() and not device.startswith("cpu"))
    try:
        check_result_file(json_file, "time_to_accuracy")
        document = measure(resolve(config.override({**options, "val_fraction": 0.0})), target, runs)
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    accuracy, seconds = document["accuracy"], document["seconds"]
    click.echo(
        f"mean {100 * accuracy['mean']:.2f} % (sd {100 * accuracy['sd']:.2f}) in {seconds['mean']:.2f} s "
        f"(sd {seconds['sd']:.2f}) over {runs} runs: the target of {100 * target:g} % is "
        f"{'reached' if document['reached'] else 'missed'}."
    )
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(config: Config, target: float, runs: int) -> dict[str, Any]:
    """The document of `runs` runs of a resolved config, with seeds from 0."""
    started = perf_counter()
    shards = training_shards(config)
    config = with_backend(config, shards)
    statistics(shards.folder, config.data.image_size, config.data.equalize)
    document = {
        "benchmark": "time_to_accuracy",
        "machine": environment(config.run.device),
        "data": stage_timers.data_description(shards),
        "config": config.to_dict(),
        "target": target,
        "prepare_seconds": perf_counter() - started,
    }
    document["runs"] = [run(config.override({"seed": seed}), shards) for seed in range(runs)]
    for name in ("accuracy", "seconds", "warm_up_seconds"):
        values = [result[name] for result in document["runs"]]
        document[name] = {"mean": mean(values), "sd": stdev(values)}
    document["reached"] = document["accuracy"]["mean"] >= target
    return document


def run(config: Config, shards: Shards, *, held_out: bool = False) -> dict[str, Any]:
    """Trains once from scratch and then evaluates on the test split, or on the images that the config holds out."""
    started = perf_counter()
    with build_training(config, shards) as training:
        trainer, loader = training.trainer, training.loader
        training.prefetch()
        trainer.warm_up()
        warm_up_seconds = perf_counter() - started
        started = perf_counter()
        entries = []
        for epoch in range(config.training.epochs):
            trainer.begin(epoch)
            entries.append(trainer.train_epoch(loader))
        seconds = perf_counter() - started
        if held_out:
            scored = training.validation
        else:
            scored = Loader.from_config(Shards(shards.folder, "test"), config, train=False)
        with scored:
            predictions = predict(trainer.trained, scored, autocast(config), "evaluation")
    scores = score(predictions, shards.manifest.classes)
    result = {
        "seed": config.training.seed,
        "accuracy": scores["accuracy"],
        "balanced_accuracy": scores["balanced_accuracy"],
        "weighted_f1": scores["weighted_f1"],
        "macro_f1": scores["macro_f1"],
        "seconds": seconds,
        "warm_up_seconds": warm_up_seconds,
        "images_per_second": sum(entry["images_per_second"] * entry["seconds"] for entry in entries) / seconds,
        "data_wait": sum(entry["data_wait"] * entry["seconds"] for entry in entries) / seconds,
    }
    click.echo(
        f"seed {result['seed']}: {100 * result['accuracy']:.2f} % in {seconds:.2f} s, "
        f"{result['images_per_second']:,.0f} img/s ({warm_up_seconds:.1f} s before the clock)"
    )
    return result


if __name__ == "__main__":
    main()
