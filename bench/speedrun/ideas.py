#!/usr/bin/env python
"""What each idea of the speed run gives alone: changes of the row's recipe over several seeds.

python bench/speedrun/ideas.py --seeds 3 --json bench/speedrun/ideas-3-seeds.json
python bench/speedrun/ideas.py --device cuda --seeds 2 --json bench/speedrun/ideas-gpu.json

A fifth of the train images is held out, and ideas are judged by balanced accuracy on them. On a CPU test
accuracies, read once a run, are shown and do not decide; run folders, resuming and the result file are those of
bench/ablation.py. On a GPU, where a run takes seconds, no folder is kept and no test read. The last line is a JSON
document.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import click
from timm.models import register_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ablation
import stage_timers
import time_to_accuracy
from emnist_dali import recipes
from emnist_dali.commands.options import with_flags
from emnist_dali.config import Config, Mixing
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.core.machine import environment
from emnist_dali.data.stats import statistics
from emnist_dali.models.ensemble import Ensemble
from emnist_dali.models.fast_net import FastNet, FlatNet
from emnist_dali.runtime import resolve
from emnist_dali.training.build import training_shards
from result_file import check_result_file, write_result_file


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


_LARGE = {"stem": 96, "widths": (192, 384)}
_FLAT = {"stem": 64, "widths": (192, 192, 384), "hidden": 512, "halved": True}


@register_model
def idea_large(pretrained: bool = False, **options: Any) -> FastNet:
    """emnist_fast at 1.5 times its width."""
    return FastNet(**_LARGE, **_sizes(options))


@register_model
def idea_flat(pretrained: bool = False, **options: Any) -> FlatNet:
    """emnist_fast_wide at twice its width."""
    return FlatNet(**_FLAT, **_sizes(options))


@register_model
def idea_large_trio(pretrained: bool = False, **options: Any) -> Ensemble:
    return Ensemble([FastNet(**_LARGE, **_sizes(options)) for _ in range(3)])


@register_model
def idea_large_five(pretrained: bool = False, **options: Any) -> Ensemble:
    """Five of emnist_fast."""
    return Ensemble([FastNet(stem=64, widths=(128, 256), **_sizes(options)) for _ in range(5)])


@register_model
def idea_flat_trio(pretrained: bool = False, **options: Any) -> Ensemble:
    return Ensemble([FlatNet(**_FLAT, **_sizes(options)) for _ in range(3)])


def _sizes(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("num_classes", "in_chans")}


def _before(**values: Any) -> Callable[[Config], Config]:
    """`fast` at its GPU size before the first row on a GPU, and `values`."""
    settings = {
        "image_size": 28,
        "epochs": 16,
        "momentum": 0.95,
        "label_smoothing": 0.1,
        "class_weights": True,
        "logit_adjustment": 0.0,
        "data.affine": recipes.LARGE_WARPS,
    }
    return _with(**settings | values)


def _adjusted(**values: Any) -> Callable[[Config], Config]:
    """With logit adjustment instead of class weights, and `values`."""
    return _before(**{"class_weights": False, "logit_adjustment": 1.0} | values)


def _smoothed(**values: Any) -> Callable[[Config], Config]:
    return _adjusted(**({"image_size": 24, "label_smoothing": 0.2} | values))


_SHORT: dict[str, Any] = {"momentum": 0.85, "data.affine": recipes.SMALL_WARPS}
_THREE: dict[str, Any] = {"model": "emnist_fast_large_trio", "batch_size": 3072}
_MIXED = Mixing(mixup_alpha=0.2, cutmix_alpha=0.6, probability=1 / 3, switch=0.5)
_TWICE_WARPS = replace(recipes.WARPS, rotation=(0.4,), scale=0.24, shear=0.3, translation=4 / 28)
# The most telling first: each has a seed before any has two.
GPU_IDEAS: dict[str, Callable[[Config], Config]] = {
    "fast": _before(),
    "logit adjustment (A)": _adjusted(),
    "A, 8 epochs, momentum 0.85, warps of fast on a CPU": _adjusted(epochs=8, **_SHORT),
    "A, 8 epochs": _adjusted(epochs=8),
    "A, 8 epochs, momentum 0.85": _adjusted(epochs=8, momentum=0.85),
    "A, 32 epochs": _adjusted(epochs=32),
    "A, 1.5 times the width": _adjusted(model="idea_large"),
    "A, emnist_fast_wide at 24×24": _adjusted(model="emnist_fast_wide", image_size=24),
    "A, the same at twice its width": _adjusted(model="idea_flat", image_size=24),
    "A, three nets, 48 epochs": _adjusted(model="emnist_fast_large_trio", batch_size=3072, epochs=48),
    "A, 512 images a step at 0.03": _adjusted(batch_size=512, lr=0.03),
    "A, 24×24 images": _adjusted(image_size=24),
    "A, label smoothing 0.2": _adjusted(label_smoothing=0.2),
    "A, 64 epochs": _adjusted(epochs=64),
    "A, three of emnist_fast_wide at twice its width, 24×24, 48 epochs": _adjusted(
        model="idea_flat_trio", image_size=24, batch_size=3072, epochs=48
    ),
    "A, three nets of 1.5 times the width, 96 epochs": _adjusted(model="idea_large_trio", batch_size=3072, epochs=96),
    "B: A at 24×24 with label smoothing 0.2": _smoothed(),
    "B, 8 epochs, momentum 0.85, warps of fast on a CPU": _smoothed(epochs=8, **_SHORT),
    "B, 6 epochs, momentum 0.85, warps of fast on a CPU": _smoothed(epochs=6, **_SHORT),
    "B, 5 epochs, momentum 0.85, warps of fast on a CPU": _smoothed(epochs=5, **_SHORT),
    "B, three nets, 48 epochs": _smoothed(**_THREE, epochs=48),
    "B, three nets, 24 epochs, momentum 0.85": _smoothed(**_THREE, epochs=24, momentum=0.85),
    "B, three nets, 36 epochs, momentum 0.9": _smoothed(**_THREE, epochs=36, momentum=0.9),
    "B, three nets, 48 epochs, weight decay 0.1": _smoothed(**_THREE, epochs=48, weight_decay=0.1),
    "B, three of emnist_fast_wide at twice its width, 48 epochs": _smoothed(
        model="idea_flat_trio", batch_size=3072, epochs=48
    ),
    "B, three nets, 48 epochs, label smoothing 0.3": _smoothed(**_THREE, epochs=48, label_smoothing=0.3),
    "B, 4 epochs, momentum 0.85, warps of fast on a CPU": _smoothed(epochs=4, **_SHORT),
    "B, 6 epochs, momentum 0.85, warps of fast on a CPU, 2,048 images a step at 0.06": _smoothed(
        epochs=6, batch_size=2048, lr=0.06, **_SHORT
    ),
    "B, 8 epochs, momentum 0.85, warps of fast on a CPU, 512 images a step at 0.03": _smoothed(
        epochs=8, batch_size=512, lr=0.03, **_SHORT
    ),
    "B, five nets, 80 epochs": _smoothed(model="idea_large_five", batch_size=5120, epochs=80),
    "B, five nets, 60 epochs, momentum 0.9": _smoothed(
        model="idea_large_five", batch_size=5120, epochs=60, momentum=0.9
    ),
    "B, three nets, 48 epochs, a third mixed": _smoothed(**_THREE, epochs=48, mixing=_MIXED),
    "A, warps of twice the CPU's, 32 epochs": _adjusted(epochs=32, **{"data.affine": _TWICE_WARPS}),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--idea", "names", multiple=True, help="Only this; repeatable.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds: 0, 1, 2, …")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--out", type=click.Path(path_type=Path), default="runs/ideas", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Result file to write, or to continue.")
def main(
    names: tuple[str, ...], device: str, seeds: int, split: str, out: Path, json_file: Path | None, **data: Any
) -> None:
    """What each idea of the speed run gives alone."""
    ideas = GPU_IDEAS if device == "cuda" else IDEAS
    if unknown := [name for name in names if name not in ideas]:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(ideas)}.", param_hint="--idea")
    base = recipes.fast if device == "cuda" else recipes.fast_cpu
    config = base(split).override({**data, "device": device, "val_fraction": 0.2})
    configs = {name: ideas[name](config) for name in dict.fromkeys(("fast", *(names or ideas)))}
    try:
        if device == "cuda":
            document = measure(configs, seeds, json_file)
        else:
            document = ablation.measure(configs, seeds, out, json_file)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document) if device == "cuda" else ablation.table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(configs: dict[str, Config], seeds: int, json_file: Path | None = None) -> dict[str, Any]:
    """The document of `configs` with seeds from 0, each judged by the images held out; written after each run.

    What `json_file` holds stays and is not repeated. Raises UserError if it has one of the names with other settings.
    """
    check_result_file(json_file, "ideas")
    resolved = {name: resolve(config) for name, config in configs.items()}
    shards = training_shards(resolved["fast"])
    document: dict[str, Any] = {
        "benchmark": "ideas",
        "machine": environment(resolved["fast"].run.device),
        "data": stage_timers.data_description(shards),
        "configs": {name: config.to_dict() for name, config in resolved.items()},
        "runs": {},
    }
    if json_file and json_file.exists():
        found = read_json(json_file)
        for name in found["configs"].keys() & resolved.keys():
            if found["configs"][name] != json.loads(json.dumps(document["configs"][name])):
                raise UserError(f"{json_file} has {name!r} with other settings; choose another --json.")
        document["configs"] = found["configs"] | document["configs"]
        document["runs"] = found["runs"]
    for seed in range(seeds):
        for name, config in resolved.items():
            if seed in {result["seed"] for result in document["runs"].get(name, [])}:
                continue
            click.echo(f"{name}:")
            statistics(shards.folder, config.data.image_size, config.data.equalize)
            result = time_to_accuracy.run(config.override({"seed": seed}), shards, held_out=True)
            document["runs"].setdefault(name, []).append(result)
            if json_file:
                write_result_file(json_file, document)
    return document


def table(document: dict[str, Any]) -> str:
    """Markdown; of the images held out."""
    lines = ["| idea | balanced accuracy of each seed, % | seconds |", "|---" * 3 + "|"]
    for name, runs in document["runs"].items():
        accuracies = ", ".join(f"{100 * run['balanced_accuracy']:.2f}" for run in runs)
        lines.append(f"| {name} | {accuracies} | {mean(run['seconds'] for run in runs):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
