#!/usr/bin/env python
"""What each part of a recipe is worth: one change at a time, over several seeds and the same number of steps.

python bench/ablation.py --seeds 3 --json bench/records/ablation.json
python bench/ablation.py --recipe published --recipe improved --seeds 2
python bench/ablation.py --split byclass --recipe cpu --variant baseline --variant "class weights"

Every run has its own run folder in --out: an interrupted one is resumed and a complete one is used as it is, so
that the command can be stopped and repeated, and commands with different --variant share runs. The result file at
--json is written after each run; what it holds stays and is not repeated, so that the work can be spread over
commands, and over machines that keep no other files. Choose variants by the validation figures only; the
test split is read once per run. The last line is a JSON document.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
from scipy.stats import t as student

import stage_timers
from emnist_dali import recipes
from emnist_dali.commands.options import with_flags
from emnist_dali.config import Config, from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.core.machine import environment
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.runs.file_names import CONFIG
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runtime import resolve
from emnist_dali.training import resume
from emnist_dali.training.session import train
from result_file import check_result_file, write_result_file

BASELINE = "baseline"
METRICS = ("val_balanced_accuracy", "val_accuracy", "balanced_accuracy", "accuracy", "macro_f1")
# Names in older result files.
_RENAMED_METRICS = {"val_class_mean": "val_balanced_accuracy", "class_mean": "balanced_accuracy"}


def baseline(split: str, epochs: int | None) -> Config:
    """`fast` at its CPU size: what the variants are compared to."""
    return recipes.fast_cpu(split).override({"epochs": epochs, "val_fraction": 0.05})


def published(config: Config) -> Config:
    """`published` on the net, batch and steps of `config`; like the original it ends at 0.15 of its peak rate."""
    recipe, epochs = recipes.published("balanced"), config.training.epochs
    training = replace(
        recipe.training,
        epochs=epochs,
        accumulation=1,
        warmup=1,
        restart_every=epochs - 1,
        seed=config.training.seed,
    )
    return replace(config.override({"data.affine": recipe.data.affine}), training=training)


def mixed(config: Config, until: float) -> Config:
    """MixUp and CutMix of `published` on half of the batches, up to the fraction `until` of the training."""
    mixing = replace(recipes.published("balanced").training.mixing, probability=0.5, until=until)
    return config.override({"training.mixing": mixing})


def _with(**values: Any) -> Callable[[Config], Config]:
    """Changes fields of `training`."""
    return lambda config: config.override({f"training.{name}": value for name, value in values.items()})


VARIANTS: dict[str, Callable[[Config], Config]] = {
    BASELINE: lambda config: config,
    "starting recipe": published,
    "no averaged weights": _with(ema=None),
    "no warps": lambda config: config.override({"data.affine": None}),
    "warps of twice the size": lambda config: config.override({"data.affine": recipes.WARPS}),
    "MixUp and CutMix on half of the batches": lambda config: mixed(config, 1.0),
    "MixUp and CutMix on half of the batches, not in the last tenth": lambda config: mixed(config, 0.9),
    "no label smoothing": _with(label_smoothing=0.0),
    "no equalization": lambda config: config.override({"data.equalize": False}),
    "class weights": _with(class_weights=True, logit_adjustment=0.0),
    "logit adjustment": _with(class_weights=False, logit_adjustment=1.0),
    "neither weights nor logit adjustment": _with(class_weights=False, logit_adjustment=0.0),
    # A fifth of Muon's rate; Lion's is a fifth of that, with five times the decay.
    "AdamW": lambda config: config.override({"optimizer": "adamw", "lr": config.training.lr / 5}),
    "Lion": lambda config: config.override(
        {"optimizer": "lion", "lr": config.training.lr / 25, "weight_decay": 0.25}
    ),
    "cosine that ends at 0.15 of the peak": lambda config: config.override(
        {"training.min_lr": 0.15 * config.training.lr}
    ),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--epochs", type=click.IntRange(2), help="[default: the recipe's]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds: 0, 1, 2, …")
@click.option("--variant", "variants", multiple=True, type=click.Choice([*VARIANTS]), help="Only this; repeatable.")
@click.option(
    "--recipe",
    "recipe_names",
    multiple=True,
    type=click.Choice([*recipes.RECIPES]),
    help="Compare whole recipes, and the variants of each if --variant is given, instead of variants of fast's small "
    "net; repeatable.",
)
@click.option("--pretrained/--no-pretrained", default=None, help="[default: the recipe's]")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--out", type=click.Path(path_type=Path), default="runs/ablation", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Result file to write, or to continue.")
def main(
    split: str,
    data_dir: str,
    source: str | None,
    epochs: int | None,
    seeds: int,
    variants: tuple[str, ...],
    recipe_names: tuple[str, ...],
    pretrained: bool | None,
    device: str | None,
    out: Path,
    json_file: Path | None,
) -> None:
    """What each part of a recipe is worth: one change at a time, over several seeds and the same number of steps."""
    changes = {"epochs": epochs, "pretrained": pretrained}
    bases = {name: recipes.RECIPES[name](split).override(changes) for name in recipe_names}
    if not bases:
        bases = {"": baseline(split, epochs)}
        # Balanced's baseline has logit adjustment, ByClass' has not.
        base = bases[""]
        variants = variants or tuple(name for name in VARIANTS if name == BASELINE or VARIANTS[name](base) != base)
    configs = {
        _name(recipe, variant): VARIANTS[variant](base).override(
            {"data_dir": data_dir, "source": source, "device": device}
        )
        for recipe, base in bases.items()
        for variant in variants or (BASELINE,)
    }
    try:
        document = measure(configs, seeds, out, json_file)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def _name(recipe: str, variant: str) -> str:
    if not recipe:
        return variant
    return recipe if variant == BASELINE else f"{recipe}, {variant}"


def measure(configs: dict[str, Config], seeds: int, out: Path, json_file: Path | None = None) -> dict[str, Any]:
    """The document of `configs` with seeds from 0, run in folders under `out`; differences are to the first config.

    What `json_file` holds stays, its runs are not repeated, and it is written after each run. Raises UserError if it
    is of other data, or has one of the names with other settings.
    """
    first = next(iter(configs.values()))
    shards = Shards(prepare(first.data.split, first.data.source, first.data.data_dir), "train")
    document = {
        "benchmark": "ablation",
        "machine": environment(),
        "data": stage_timers.data_description(shards),
        "fingerprint": shards.manifest.fingerprint,
        "configs": {name: resolve(config).to_dict() for name, config in configs.items()},
    }
    runs: dict[str, list[dict[str, Any]]] = {}
    if json_file and json_file.exists():
        found = _found(json_file, document["fingerprint"], configs)
        document["configs"] = found["configs"] | document["configs"]
        runs = found["runs"]
    for seed in range(seeds):  # the table is complete after each seed
        for name, config in configs.items():
            of_name = runs.setdefault(name, [])
            if seed in {result["seed"] for result in of_name}:
                continue
            of_name.append(run(config.override({"seed": seed}), out / f"{_slug(name)}-{seed}"))
            _write(document, runs, json_file)
    return _write(document, runs, json_file)


def _write(document: dict[str, Any], runs: dict[str, list[dict[str, Any]]], json_file: Path | None) -> dict[str, Any]:
    complete = {name: results for name, results in runs.items() if results}
    reference = next(iter(complete.values()))
    document["variants"] = {name: summary(results, reference) for name, results in complete.items()}
    document["runs"] = complete
    if json_file:
        write_result_file(json_file, document)
    return document


def _found(path: Path, fingerprint: str, configs: dict[str, Config]) -> dict[str, Any]:
    """The document in a result file; raises UserError if runs of `configs` do not belong into it."""
    check_result_file(path, "ablation")
    found = read_json(path)
    if found.get("fingerprint") != fingerprint:
        raise UserError(f"{path} is a result file of other data; choose another --json.")
    for name in configs.keys() & found["configs"].keys():
        settings = None
        with suppress(UserError):  # settings that were removed, or a device that is not available here
            settings = _settings(from_dict(found["configs"][name]))
        if settings != _settings(configs[name]):
            raise UserError(f"{path} has {name!r} with other settings; choose another --json.")
    found["runs"] = {
        name: [{_RENAMED_METRICS.get(key, key): value for key, value in result.items()} for result in results]
        for name, results in found["runs"].items()
    }
    return found


def _settings(config: Config) -> str:
    """Equal for configs that give the same result with the same seed."""
    return json.dumps(resolve(config.override({"seed": 0})).identity(), sort_keys=True)


def run(config: Config, path: Path) -> dict[str, Any]:
    """The result of a run in the folder `path`, which is started, resumed or only read."""
    folder = RunFolder(path)
    if (path / CONFIG).exists() and _settings(folder.config()) != _settings(config):
        raise UserError(f"{path} is a run with other settings; choose another --out.")
    if not any(entry["kind"] == "test" for entry in folder.entries()):
        checkpoint = resume.find("auto", str(path))
        state = resume.load(checkpoint, None, {})[1] if checkpoint else None
        train(config.override({"out": str(path)}), state)
    epochs = [entry for entry in folder.entries() if entry["kind"] == "epoch"]
    best = max(epochs, key=lambda entry: entry["val_accuracy"])
    test = next(entry for entry in folder.entries() if entry["kind"] == "test")
    return {
        "run": path.name,
        "seed": config.training.seed,
        "steps": epochs[-1]["step"],
        "seconds": sum(entry["seconds"] for entry in epochs),
        **{name: best[name] for name in METRICS if name in best},
        **{name: test[name] for name in METRICS if name in test},
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())


def summary(runs: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each metric, and its difference to `reference` at equal seeds."""
    result: dict[str, Any] = {"seconds": mean(run["seconds"] for run in runs)}
    for name in METRICS:
        values = [run[name] for run in runs]
        result[name] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
        if runs is not reference:
            pairs = [run[name] - other[name] for run, other in zip(runs, reference, strict=False)]
            result[name] |= {"difference": mean(pairs), "half_interval": half_interval(pairs)}
    return result


def half_interval(values: list[float]) -> float | None:
    """Half of Student's 95 % interval of a mean; None for a single value."""
    if len(values) < 2:
        return None
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))


def table(document: dict[str, Any]) -> str:
    """Markdown: percent, mean ± standard deviation over the seeds; differences in points ± half a 95 % interval."""
    lines = [
        "| variant | validation, balanced accuracy | difference | test accuracy | difference | s |",
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
