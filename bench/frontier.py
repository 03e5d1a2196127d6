#!/usr/bin/env python
"""The accuracy frontier: nets that people use for EMNIST, each trained for 2, 5 and 15 minutes of this CPU.

python bench/frontier.py --net lenet5 --budget 120 --seed 0
python bench/frontier.py --table --plot frontier.svg

Data, augmentation and everything else of the training are the same for all, but for the net with its image size, the
number of epochs and the learning rate. The rate is that which has the best balanced accuracy on validation images
after a short training: of three, and of the next lower or higher one as long as the best is at an end of those tried
(eight at most); seed 0 chooses for all seeds and budgets. Then the net trains on the whole train split for as many
epochs as fit into the budget, at the img/s measured before, and the test split is read once. Only this last training
counts. The result file is written after each run and what it holds is not repeated, so that the work can be done in
several sittings; each budget is finished for all nets before the next. Another machine may continue a file: it trains
for as many epochs as would fit on the first, in float32 where it has no bfloat16. The last line is a JSON document.
"""

import json
from collections.abc import Sequence
from itertools import count, product
from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np

import stage_timers
import time_to_accuracy
from emnist_dali.commands.options import with_flags
from emnist_dali.config import Affine, Config, Data, Model, Run, Training, from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.core.machine import available_cpus, environment
from emnist_dali.data.shards import Shards
from emnist_dali.evaluation.inference import evaluation_loader, predict
from emnist_dali.evaluation.metrics import score
from emnist_dali.loading import sampling
from emnist_dali.models.build import build_model
from emnist_dali.runtime import autocast, resolve
from emnist_dali.training.build import build_training, training_shards
from emnist_dali.training.trainer import DivergedError
from frontier_nets import NETS, with_net
from frontier_report import draw, epochs_of, table
from result_file import check_result_file, commit, write_result_file

BUDGETS = (120, 300, 900)  # s
FACTORS = (0.5, 1.0, 2.0)  # of `common`'s rate
MOST_RATES = 8  # that are tried for a net
GRID_SECONDS = 20.0  # of training at each, or as many as GRID_STEPS take
GRID_STEPS = 40  # ResNet-18 takes 10 in 20 s on 2 cores, and after 10 every rate is at chance
HELD_OUT = 0.1  # of the train images, for choosing the rate
SPEED_SECONDS = 3.0  # that measuring img/s takes at least
_SPEED_STEPS = 4


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--net", "names", multiple=True, type=click.Choice([*NETS]), help="Repeatable.  [default: all]")
@click.option(
    "--budget", "budgets", multiple=True, type=click.IntRange(1), default=BUDGETS, show_default=True,
    help="Seconds of training; repeatable.",
)  # fmt: skip
@click.option(
    "--seed", "seeds", multiple=True, type=click.IntRange(0), default=(0,), show_default=True, help="Repeatable."
)
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--epochs", type=click.IntRange(1), help="Of every training, whatever its budget: a trial.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path),
    help="Result file to write, or to continue.  [default: bench/records/frontier-cpu-<n>-cores.json]",
)  # fmt: skip
@click.option("--table", "show_table", is_flag=True, help="Print the table of the result file instead.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the result file as SVG instead.")
def main(
    names: tuple[str, ...],
    budgets: tuple[int, ...],
    seeds: tuple[int, ...],
    split: str,
    epochs: int | None,
    json_file: Path | None,
    show_table: bool,
    plot_file: Path | None,
    **data: str | None,
) -> None:
    """Test accuracy of nets that people use for EMNIST, each trained for the same time on this CPU."""
    default = Path(__file__).parent / "records" / f"frontier-cpu-{available_cpus()}-cores.json"
    json_file = json_file or default
    try:
        if show_table or plot_file:
            document = _read(json_file)
            if plot_file:
                draw(document, plot_file)
            if show_table:
                click.echo(table(document))
            return
        base = common(split).override({**data, "device": "cpu", "val_fraction": 0.0})
        document = measure(base, names or tuple(NETS), budgets, seeds, json_file, epochs)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def common(split: str) -> Config:
    """What all nets have in common; a net's entry may have another image size.

    Not a recipe: when that changes, a result file could not be continued.
    """
    return Config(
        recipe="frontier",
        data=Data(
            split=split,
            image_size=28,
            batch_size=256,
            affine=Affine(rotation=(0.25,), scale=0.15, shear=0.2, translation=0.09),
        ),
        model=Model(model="emnist_fast_small", pretrained=False),
        training=Training(
            optimizer="muon",
            lr=0.02,
            weight_decay=0.05,
            schedule="cosine",
            warmup=0.2,
            clip=1.0,
            label_smoothing=0.1,
            class_weights=False,
            logit_adjustment=1.0 if split == "balanced" else 0.0,
            ema=0.99,
        ),
        run=Run(compile="off", amp="native"),
    )


def measure(
    base: Config,
    names: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
    json_file: Path,
    epochs: int | None = None,
) -> dict[str, Any]:
    """The document in `json_file`, with the runs of these nets, budgets (s) and seeds added where they are missing.

    Every training has `epochs`, if given. Raises UserError if the file holds something else, or for a net whose
    packages are missing.
    """
    base = resolve(base)
    shards = training_shards(base)
    machine = environment(base.run.device)
    document = _continued(json_file, base, shards, machine, epochs)
    done = {(run["budget"], run["net"], run["seed"]) for run in document["runs"]}
    left = [key for key in dict.fromkeys(product(budgets, names, seeds)) if key not in done]
    configs = {name: resolve(with_net(name, base)) for name in dict.fromkeys(name for _, name, _ in left)}
    for budget, name, seed in left:
        config = configs[name]
        if name not in document["nets"]:
            if _kind(machine, base.run.amp) != _kind(document["machine"], document["config"]["run"]["amp"]):
                raise UserError(
                    f"{json_file} is of another machine and lacks img/s of {name}; choose another --json."
                )
            document["nets"][name] = choose_rate(config, shards, epochs)
            write_result_file(json_file, document)
        net = document["nets"][name]
        length, fraction = (epochs, 1.0) if epochs else plan(budget, net["images_per_second"], len(shards))
        config = config.override({"epochs": length, "val_fraction": 1 - fraction, "lr": net["lr"], "seed": seed})
        run = {
            "net": name,
            "budget": budget,
            "epochs": length,
            "fraction": fraction,
            "images": round(length * fraction * len(shards)),
            "lr": net["lr"],
            "commit": commit(),
            "cpu": machine["cpu"],
            "config": config.to_dict(),
        }
        click.echo(f"{name}, {budget} s: rate {net['lr']:g}, epochs {epochs_of(run)}")
        document["runs"].append(run | time_to_accuracy.run(config, shards))
        write_result_file(json_file, document)
    return document


def plan(seconds: float, images_per_second: float, images: int) -> tuple[int, float]:
    """How many epochs of `images` fit into the time, and the fraction of them in each: below 1 where not one fits.

    >>> plan(100, 50, 1000), plan(100, 5, 1000)
    ((5, 1.0), (1, 0.5))
    """
    epochs = seconds * images_per_second / images
    return (int(epochs), 1.0) if epochs >= 1 else (1, epochs)


def choose_rate(config: Config, shards: Shards, epochs: int | None = None) -> dict[str, Any]:
    """A net's entry: its parameters, its img/s, and the rate that the short trainings of the grid choose.

    Every training has `epochs`, if given. Raises DivergedError if all diverge.
    """
    labels, speed = shards.labels(), images_per_second(config, shards)
    indices, held_out = sampling.holdout(labels, HELD_OUT, config.training.seed)
    if epochs is None:
        seconds = max(GRID_SECONDS, GRID_STEPS * config.data.batch_size / speed)
        epochs, fraction = plan(seconds, speed, len(indices))
        indices = indices[sampling.holdout(labels[indices], 1 - fraction, config.training.seed)[0]]
    accuracies: dict[float, float] = {}
    grid, diverged, untried = [], None, list(FACTORS)
    while untried and len(accuracies) < MOST_RATES:
        factor = untried.pop(0)
        trial = config.override({"epochs": epochs, "lr": factor * config.training.lr})
        try:
            grid.append(_validated(trial, shards, indices, held_out))
            accuracies[factor] = grid[-1]["val_balanced_accuracy"]
        except DivergedError as error:
            accuracies[factor], diverged = -factor, error  # of those that diverge the lowest is best
        if not untried:
            best = max(accuracies, key=accuracies.get)
            untried = [near for near in (best / 2, best * 2) if near not in accuracies]
    if not grid:
        raise diverged
    return {
        "parameters": sum(p.numel() for p in build_model(config.model, len(shards.manifest.classes)).parameters()),
        # Of a minute, where `speed` is of seconds.
        "images_per_second": mean(trial["images_per_second"] for trial in grid),
        "lr": max(grid, key=lambda trial: trial["val_balanced_accuracy"])["lr"],
        "grid": grid,
        "commit": commit(),
    }


def images_per_second(config: Config, shards: Shards) -> float:
    """Of steady training, after steps that do not count."""
    images = seconds = 0.0
    threads = available_cpus()
    with stage_timers.training_of_steps(config, shards, _SPEED_STEPS, threads) as training:
        training.trainer.warm_up()
        for epoch in count(1):  # in epoch 0 the trainer may print how long the whole training will take
            training.trainer.begin(epoch)
            entry = training.trainer.train_epoch(training.loader)
            if epoch > 1:
                images += entry["images_per_second"] * entry["seconds"]
                seconds += entry["seconds"]
            if seconds > SPEED_SECONDS:
                return images / seconds


def _validated(config: Config, shards: Shards, indices: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Trains on the images at `indices` (n,), and evaluates on those at `held_out` (m,)."""
    with build_training(config, shards, indices=indices) as training:
        trainer, entries = training.trainer, []
        training.prefetch()
        trainer.warm_up()
        for epoch in range(config.training.epochs):
            trainer.begin(epoch)
            entries.append(trainer.train_epoch(training.loader))
    with evaluation_loader(config, shards, training.stats, held_out) as loader:
        scores = score(predict(trainer.trained, loader, autocast(config), "validation"), shards.manifest.classes)
    seconds = sum(entry["seconds"] for entry in entries)
    result = {
        "lr": config.training.lr,
        "epochs": config.training.epochs,
        "images": len(indices),
        "val_balanced_accuracy": scores["balanced_accuracy"],
        "val_accuracy": scores["accuracy"],
        "seconds": seconds,
        "images_per_second": sum(entry["images_per_second"] * entry["seconds"] for entry in entries) / seconds,
    }
    click.echo(
        f"rate {result['lr']:g}: {100 * result['val_balanced_accuracy']:.2f} % balanced validation accuracy "
        f"in {seconds:.0f} s, {result['images_per_second']:,.0f} img/s"
    )
    return result


def _continued(
    json_file: Path, base: Config, shards: Shards, machine: dict[str, Any], epochs: int | None
) -> dict[str, Any]:
    """The document in the file, or a new one; raises UserError if what is there cannot be compared with new runs."""
    document = {
        "benchmark": "frontier",
        "machine": machine,
        "data": stage_timers.data_description(shards),
        "fingerprint": shards.manifest.fingerprint,
        "test_images": len(Shards(shards.folder, "test")),
        "config": base.to_dict(),
        "epochs": epochs,
        "nets": {},
        "runs": [],
    }
    if not json_file.exists():
        return document
    found = _read(json_file)
    if _setting(found) != _setting(document):
        raise UserError(f"{json_file} is of other data or other settings; choose another --json.")
    return found


def _setting(document: dict[str, Any]) -> tuple:
    """What all runs of a document share: all but the precision, which is the CPU's."""
    config = from_dict(document["config"]).override({"amp": "native"})
    return document["fingerprint"], document["epochs"], config.identity()


def _kind(machine: dict[str, Any], amp: str) -> tuple[str, int, str]:
    """CPUs of one name may differ: an AMD EPYC of 2021 has no bfloat16, one of 2022 has."""
    return machine["cpu"], machine["cpus"], amp


def _read(json_file: Path) -> dict[str, Any]:
    if not json_file.exists():
        raise UserError(f"There is no {json_file}; name a result file with --json, or run some nets first.")
    check_result_file(json_file, "frontier")
    return read_json(json_file)


if __name__ == "__main__":
    main()
