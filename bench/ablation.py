#!/usr/bin/env python
"""What each part of a recipe is worth: one change at a time, several seeds, the same number of steps.

python bench/ablation.py --seeds 3 --json bench/records/ablation.json
python bench/ablation.py --recipe seed --recipe best --seeds 2
python bench/ablation.py --split byclass --recipe cpu --variant baseline --variant "class weights"

Every run is a run folder of its own under --out; one that is there already is gone on with or taken as it is, so that
the command can be stopped and repeated, and two of them with different --variant share the work. The record at --json
is written after each run, and what it holds of the same data and settings is not run again: the work can be spread
over machines that keep nothing else. Variants are to be chosen by the validation part only; the test split is read
once a run. The last line is a JSON document.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
from scipy.stats import t as student

import stage_timers
from emnist_dali import recipes
from emnist_dali.config import Affine, Config, from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.core.machine import environment
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.runs.checkpoint import load_state
from emnist_dali.runs.folder import RunFolder
from emnist_dali.training import resume
from emnist_dali.training.session import train
from record import write_record

BASELINE = "baseline"
METRICS = ("val_balanced_accuracy", "val_accuracy", "balanced_accuracy", "accuracy", "macro_f1")


def baseline(split: str, epochs: int) -> Config:
    """`fast` at its CPU size: everything is measured from here."""
    config = recipes.fast(split, gpu=False)
    return change(config, training={"epochs": epochs}, data={"val_fraction": 0.05})


def change(config: Config, **parts: dict[str, Any]) -> Config:
    return replace(config, **{part: replace(getattr(config, part), **values) for part, values in parts.items()})


def starting(config: Config) -> Config:
    """The published recipe on the same net, batch and steps; it ends as published at 0.15 of its peak rate."""
    seed = recipes.seed("balanced")
    epochs = config.training.epochs
    training = replace(
        seed.training,
        epochs=epochs,
        accumulation=1,
        warmup=1,
        restart_every=epochs - 1,
        seed=config.training.seed,
    )
    return replace(change(config, data={"affine": seed.data.affine}), training=training)


def mixed(config: Config, until: float) -> Config:
    published = recipes.seed("balanced").training.mixing
    return change(config, training={"mixing": replace(published, probability=0.5, until=until)})


VARIANTS: dict[str, Callable[[Config], Config]] = {
    BASELINE: lambda config: config,
    "starting recipe": starting,
    "no averaged weights": lambda config: change(config, training={"ema": None}),
    "no warps": lambda config: change(config, data={"affine": None}),
    "warps of half the size": lambda config: change(
        config, data={"affine": Affine(rotation=(0.1,), scale=0.06, shear=0.075, translation=1 / 28)}
    ),
    "MixUp and CutMix on half of the batches": lambda config: mixed(config, 1.0),
    "the same, not in the last tenth": lambda config: mixed(config, 0.9),
    "erasing a box of a quarter of the images": lambda config: change(config, training={"erasing": 0.25}),
    "elastic distortion, 0.7 pixels": lambda config: change(config, training={"elastic": 0.7}),
    "no label smoothing": lambda config: change(config, training={"label_smoothing": 0.0}),
    "no equalization": lambda config: change(config, data={"equalize": False}),
    "class weights": lambda config: change(config, training={"class_weights": True}),
    "no class weights": lambda config: change(config, training={"class_weights": False}),
    "AdamW": lambda config: change(config, training={"optimizer": "adamw", "lr": 4e-3}),
    # A fifth of AdamW's rate and five times its decay.
    "Lion": lambda config: change(config, training={"optimizer": "lion", "lr": 8e-4, "weight_decay": 0.25}),
    "cosine that ends at 0.15 of the peak": lambda config: change(
        config, training={"min_lr": 0.15 * config.training.lr}
    ),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As of emnist-dali prepare.")
@click.option("--epochs", type=click.IntRange(2), help="Of each.  [default: 5 of a variant, its own of a recipe]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="0, 1, 2, …")
@click.option("--variant", "names", multiple=True, type=click.Choice([*VARIANTS]), help="Only these; repeatable.")
@click.option(
    "--recipe",
    "whole",
    multiple=True,
    type=click.Choice([*recipes.RECIPES]),
    help="Recipes instead of fast's small net; with --variant, these of each.",
)
@click.option("--pretrained/--no-pretrained", default=None, help="Of --recipe.  [default: the recipe's]")
@click.option("--device", help="cuda, cuda:1, cpu.  [default: auto]")
@click.option("--out", type=click.Path(path_type=Path), default="runs/ablation", show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Record to write, and to go on with.")
def main(
    split: str,
    data_dir: str,
    source: str | None,
    epochs: int | None,
    seeds: int,
    names: tuple[str, ...],
    whole: tuple[str, ...],
    pretrained: bool | None,
    device: str | None,
    out: Path,
    path: Path | None,
) -> None:
    """What each part of a recipe is worth: one change at a time, several seeds, the same number of steps."""
    given = {"epochs": epochs, "pretrained": pretrained}
    bases = {name: recipes.RECIPES[name](split).override(given) for name in whole}
    bases = bases or {"": baseline(split, epochs or 5)}
    chosen = names or ((BASELINE,) if whole else tuple(name for name in VARIANTS if name != "class weights"))
    configs = {
        _name(recipe, variant): VARIANTS[variant](base) for recipe, base in bases.items() for variant in chosen
    }
    place = {"data_dir": data_dir, "source": source, "device": device}
    try:
        document = measure({name: config.override(place) for name, config in configs.items()}, seeds, out, path)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def _name(recipe: str, variant: str) -> str:
    return variant if not recipe else recipe if variant == BASELINE else f"{recipe}, {variant}"


def measure(configs: dict[str, Config], seeds: int, out: Path, record: Path | None = None) -> dict[str, Any]:
    """The document of `configs` with seeds from 0, in run folders under `out`; differences are to the first.

    Runs that `record` holds are taken from there, and it is written after each run.
    """
    first = next(iter(configs.values()))
    folder = prepare(first.data.split, first.data.source, first.data.data_dir)
    shards = Shards(folder, "train")
    document = {
        "benchmark": "ablation",
        "machine": environment(),
        "data": stage_timers.data(shards),
        "fingerprint": shards.manifest.fingerprint,
        "configs": {name: config.to_dict() for name, config in configs.items()},
    }
    known = _known(record, document) if record else {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
    for seed in range(seeds):  # a whole table after each
        for name, config in configs.items():
            seeded = change(config, training={"seed": seed})
            done = known.get((name, seed)) or one_run(seeded, out / f"{_slug(name)}-{seed}")
            runs[name].append(done)
            against = next(iter(runs.values()))
            document["variants"] = {name: summary(of, against) for name, of in runs.items() if of}
            document["runs"] = {name: of for name, of in runs.items() if of}
            if record:
                write_record(record, document)
    return document


def _known(record: Path, now: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """The runs of a record by variant and seed: those of the data and the settings of `now`."""
    if not record.exists():
        return {}
    before = read_json(record)
    if before.get("benchmark") != "ablation" or before.get("fingerprint") != now["fingerprint"]:
        raise UserError(f"{record} is no ablation on these data; name another --json.")
    same = [name for name, of in now["configs"].items() if _deciding(before["configs"].get(name)) == _deciding(of)]
    return {(name, run["seed"]): run for name in same for run in before["runs"].get(name, ())}


def _deciding(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings that decide a result, but for the seed; one that is younger than a record was at its default."""
    if config is None:
        return None
    free = {*resume.FREE, "seed"}
    parts = from_dict(config).to_dict()
    return {
        part: {name: value for name, value in parts[part].items() if name not in free}
        for part in ("data", "model", "training", "run")
    }


def one_run(config: Config, path: Path) -> dict[str, Any]:
    """Trains in `path`, goes on there, or takes what is there."""
    lines = RunFolder(path).logged()
    if not any(line["kind"] == "test" for line in lines):
        found = resume.find("auto", str(path))
        train(config.override({"out": str(path)}), load_state(found) if found else None)
        lines = RunFolder(path).logged()
    epochs = [line for line in lines if line["kind"] == "epoch"]
    best = max(epochs, key=lambda line: line["val_accuracy"])
    test = next(line for line in lines if line["kind"] == "test")
    return {
        "run": path.name,
        "seed": config.training.seed,
        "steps": epochs[-1]["step"],
        "seconds": sum(line["seconds"] for line in epochs),
        **{name: best[name] for name in METRICS if name in best},
        **{name: test[name] for name in METRICS if name in test},
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())


def summary(runs: list[dict[str, Any]], against: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation, and the difference to the runs of equal seeds in `against` with its interval."""
    result: dict[str, Any] = {"seconds": mean(run["seconds"] for run in runs)}
    for name in METRICS:
        values = [run[name] for run in runs]
        result[name] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
        if against is not runs:
            pairs = [run[name] - base[name] for run, base in zip(runs, against, strict=False)]
            result[name] |= {"difference": mean(pairs), "half_interval": half_interval(pairs)}
    return result


def half_interval(values: list[float]) -> float | None:
    """Half of Student's 95 % interval of a mean."""
    if len(values) < 2:
        return None
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))


def table(document: dict[str, Any]) -> str:
    """Percent, mean and standard deviation over the seeds; differences in points with their 95 % interval."""
    lines = [
        "| variant | validation, mean of classes | difference | test accuracy | difference | s |",
        "|---" * 6 + "|",
    ]
    for name, row in document["variants"].items():
        cells = [f"| {name}"]
        for metric in ("val_balanced_accuracy", "accuracy"):
            cells += [_percent(row[metric]), _difference(row[metric])]
        lines.append(" | ".join([*cells, f"{row['seconds']:.0f} |"]))
    return "\n".join(lines)


def _percent(values: dict[str, float]) -> str:
    spread = f" ± {100 * values['sd']:.2f}" if values["sd"] is not None else ""
    return f"{100 * values['mean']:.2f}{spread}"


def _difference(values: dict[str, float]) -> str:
    if "difference" not in values:
        return ""
    half = values["half_interval"]
    return f"{100 * values['difference']:+.2f}" + (f" ± {100 * half:.2f}" if half is not None else "")


if __name__ == "__main__":
    main()
