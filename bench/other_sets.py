#!/usr/bin/env python
"""Test accuracy on published sets other than EMNIST's Balanced, ByClass and ByMerge, all by one recipe.

python bench/other_sets.py --recipe fast --seeds 3 --json bench/records/other-sets.json

Downloads and prepares what is missing, and trains the recipe as it is, tuned on Balanced, with each seed: its warps
are for characters, so that the figures on clothes and tissue are no measure of what is possible there. Only the
batch is smaller where it would leave fewer than 16 steps an epoch. Runs that the file at --json holds are not
repeated. The last line is a JSON document.
"""

import json
from math import log2
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from emnist_dali.commands.options import with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.core.machine import environment
from emnist_dali.data.emnist import SPLITS
from emnist_dali.data.manifest import MANIFEST, Manifest, read_manifest
from emnist_dali.data.named_sets import SETS
from emnist_dali.data.prepare import prepare, split_folder
from emnist_dali.evaluation.evaluate import evaluate
from emnist_dali.recipes import RECIPES, choose
from emnist_dali.training.session import train
from result_file import check_result_file, commit, write_result_file

STEPS = 16  # an epoch, at least
ALL = [*(split for split in SPLITS if split not in ("balanced", "byclass", "bymerge")), *SETS]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--set", "names", multiple=True, help=f"[default: {', '.join(ALL)}]")
@click.option("--recipe", type=click.Choice([*RECIPES]), default="fast", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--epochs", type=click.IntRange(1), help="[default: the recipe's]")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds 0, 1, 2, …")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Result file to write, or to continue.")
def main(names: tuple[str, ...], recipe: str, seeds: int, json_file: Path | None, **options: Any) -> None:
    """Test accuracy on published sets other than EMNIST's Balanced, ByClass and ByMerge, all by one recipe."""
    try:
        document = measure(names or ALL, recipe, seeds, json_file, options)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(
    names: tuple[str, ...] | list[str], recipe: str, seeds: int, json_file: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    check_result_file(json_file, "other_sets")
    for name in names:
        if name not in (*SPLITS, *SETS) and not (split_folder(options["data_dir"], name, None) / MANIFEST).exists():
            raise UserError(f"There is no set {name!r}; choose of {', '.join(ALL)}, or prepare it first.")
    gpu = torch.cuda.is_available() and not (options["device"] or "").startswith("cpu")
    document = {
        "benchmark": "other_sets",
        "machine": environment(options["device"] or ("cuda" if gpu else "cpu")),
        "recipe": recipe,
        "epochs": options["epochs"],
        "runs": [],
    }
    if json_file and json_file.exists():
        found = read_json(json_file)
        if (found["recipe"], found["epochs"]) != (recipe, options["epochs"]):
            raise UserError(f"{json_file} is of another recipe or other epochs; choose another --json.")
        if any(found["machine"][field] != document["machine"][field] for field in ("cpu", "cpus", "gpu")):
            raise UserError(f"{json_file} is of another machine or device; choose another --json.")
        document = found
    done = {(run["set"], run["seed"]) for run in document["runs"]}
    for name in names:
        missing = [seed for seed in range(seeds) if (name, seed) not in done]
        if not missing:
            continue
        manifest = read_manifest(prepare(name, data_dir=options["data_dir"]))
        if {run["fingerprint"] for run in document["runs"] if run["set"] == name} - {manifest.fingerprint}:
            raise UserError(f"{json_file} has runs on other images of {name}; choose another --json.")
        for seed in missing:
            run = _run(manifest, name, recipe, seed, gpu, options)
            document["runs"].append({"set": name, "seed": seed, **run})
            if json_file:
                write_result_file(json_file, document)
    return document


def _run(manifest: Manifest, name: str, recipe: str, seed: int, gpu: bool, options: dict[str, Any]) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        config, _ = choose(recipe, name, gpu)
        batch_size = min(config.data.batch_size, 2 ** max(3, int(log2(sum(manifest.counts["train"]) / STEPS))))
        options = {**options, "batch_size": batch_size}
        run = train(config.override({**options, "seed": seed, "out": str(Path(folder) / "run")}))
        result = evaluate(run.path)["test"]
    scores = {metric: result[metric] for metric in ("images", "accuracy", "balanced_accuracy", "macro_f1")}
    data = {"official": manifest.official, "fingerprint": manifest.fingerprint}
    return {**scores, **data, "batch_size": batch_size, "commit": commit()}


def table(document: dict[str, Any]) -> str:
    """Markdown: mean ± standard deviation over the seeds, in %; a set that is not the published one is marked."""
    lines = ["| set | seeds | test images | accuracy, % | balanced accuracy, % |", "|---|--:|--:|--:|--:|"]
    for name in dict.fromkeys(run["set"] for run in document["runs"]):
        runs = [run for run in document["runs"] if run["set"] == name]
        title = name if runs[0]["official"] else f"{name}, not as published"
        cells = [title, str(len(runs)), f"{runs[0]['images']:,}"]
        for metric in ("accuracy", "balanced_accuracy"):
            values = [100 * run[metric] for run in runs]
            cells.append(f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
