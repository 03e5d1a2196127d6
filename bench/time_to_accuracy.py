#!/usr/bin/env python
"""Seconds of training to a test accuracy, over several seeds.

python bench/time_to_accuracy.py --recipe fast --target 0.90 --runs 5

A recipe of fixed length is trained from scratch with each seed, on the whole train split: nothing is chosen by a
validation, and the test split is read once, after the clock has stopped. The clock runs from the first batch to the
last weights; preparing the data, compiling and warming up are told apart from it. The record holds if the mean over
the runs reaches the target. The last line is a JSON document.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import click
import numpy as np
import torch

import stage_timers
from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.evaluation.inference import evaluation_loader, predict
from emnist_dali.evaluation.metrics import score
from emnist_dali.recipes import RECIPES, choose
from emnist_dali.runtime import autocast, resolve
from emnist_dali.training.trainer import Trainer, training_loader, tune_device
from record import check_record, write_record


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--recipe", type=click.Choice([*RECIPES]), default="fast", show_default=True)
@click.option("--target", type=click.FloatRange(0, 1), default=0.90, show_default=True, help="Test accuracy.")
@click.option("--runs", type=click.IntRange(2), default=5, show_default=True, help="With seeds 0, 1, 2, …")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As of emnist-dali prepare.")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the JSON document here too.")
def main(recipe: str, target: float, runs: int, split: str, json_file: Path | None, **options: Any) -> None:
    """Seconds of training to a test accuracy, mean and deviation over several seeds."""
    device = options["device"] or "auto"
    asked, _ = choose(recipe, split, gpu=torch.cuda.is_available() and not device.startswith("cpu"))
    try:
        check_record(json_file, "time_to_accuracy")
        document = measure(resolve(asked.override({**options, "val_fraction": 0.0})), target, runs)
        if json_file:
            write_record(json_file, document)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    accuracy, seconds = document["accuracy"], document["seconds"]
    click.echo(
        f"mean {100 * accuracy['mean']:.2f} % (sd {100 * accuracy['sd']:.2f}) in {seconds['mean']:.2f} s "
        f"(sd {seconds['sd']:.2f}) over {runs} runs: the target of {100 * target:g} % is "
        f"{'reached' if document['reached'] else 'missed'}."
    )
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(config: Config, target: float, runs: int) -> dict[str, Any]:
    """The document of `runs` runs of a resolved config, with seeds from 0."""
    tune_device(config)
    started = perf_counter()
    folder = prepare(config.data.split, config.data.source, config.data.data_dir)
    statistics(folder, config.data.image_size)
    document = {
        "benchmark": "time_to_accuracy",
        "machine": environment(),
        "data": stage_timers.data(Shards(folder, "train")),
        "config": config.to_dict(),
        "target": target,
        "prepare_seconds": perf_counter() - started,
    }
    document["runs"] = [
        one_run(replace(config, training=replace(config.training, seed=s)), folder) for s in range(runs)
    ]
    for name in ("accuracy", "seconds", "warm_up_seconds"):
        values = [run[name] for run in document["runs"]]
        document[name] = {"mean": mean(values), "sd": stdev(values)}
    document["reached"] = document["accuracy"]["mean"] >= target
    return document


def one_run(config: Config, folder: Path) -> dict[str, Any]:
    """One training from scratch: seconds from the first batch to the last weights, and what the test split says."""
    started = perf_counter()
    shards, stats = Shards(folder, "train"), statistics(folder, config.data.image_size)
    manifest = shards.manifest
    with training_loader(config, shards, stats) as loader:
        trainer = Trainer(config, loader, manifest.classes, manifest.counts["train"])
        loader.prefetch()
        trainer.warm_up()
        warm_up_seconds = perf_counter() - started
        started = perf_counter()
        epochs = []
        for epoch in range(config.training.epochs):
            trainer.begin(epoch)
            epochs.append(trainer.train_epoch())
        seconds = perf_counter() - started
    test = Shards(folder, "test")
    with evaluation_loader(config, test, stats, np.arange(len(test))) as loader:
        result = score(predict(trainer.evaluated, loader, autocast(config), "test"), manifest.classes)
    run = {
        "seed": config.training.seed,
        "accuracy": result["accuracy"],
        "weighted_f1": result["weighted_f1"],
        "macro_f1": result["macro_f1"],
        "seconds": seconds,
        "warm_up_seconds": warm_up_seconds,
        "images_per_second": sum(e["images_per_second"] * e["seconds"] for e in epochs) / seconds,
        "data_wait": sum(e["data_wait"] * e["seconds"] for e in epochs) / seconds,
    }
    click.echo(
        f"seed {run['seed']}: {100 * run['accuracy']:.2f} % in {seconds:.2f} s, {run['images_per_second']:,.0f} img/s"
        f" (before the clock: {warm_up_seconds:.1f} s)"
    )
    return run


if __name__ == "__main__":
    main()
