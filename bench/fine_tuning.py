#!/usr/bin/env python
"""What starting from the model in the package gains on 600 images of other classes.

python bench/fine_tuning.py --source ../shared/emnist/byclass --json bench/records/fine-tuning-cpu-2-cores.json

The classes are the 15 small letters that Balanced does not have, 40 training images each, drawn by the seed, and all
of their test images. The last line is a JSON document.
"""

import json
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.emnist import SPLITS
from emnist_dali.data.pack import pack
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.options import with_flags
from emnist_dali.recipes import cpu
from emnist_dali.runtime import resolve
from emnist_dali.training.build import training_shards
from result_file import check_result_file, commit, write_result_file
from time_to_accuracy import run

CLASSES = tuple(c for c in SPLITS["byclass"].classes if c not in SPLITS["balanced"].classes)
PER_CLASS = 40
STARTS = {"random weights": {}, "builtin": {"weights": "builtin"}}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Number of seeds: 0, 1, 2, …")
@click.option("--epochs", type=click.IntRange(1), multiple=True, default=(1, 10), show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="Of ByClass, as for emnist-dali prepare.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(seeds: int, epochs: tuple[int, ...], data_dir: str, source: str | None, json_file: Path | None) -> None:
    """Test accuracy after a short training on few images, from random weights and from those in the package."""
    try:
        check_result_file(json_file, "fine_tuning")
        document = measure(prepare("byclass", source, data_dir), seeds, epochs)
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(folder: Path, seeds: int, epochs: tuple[int, ...]) -> dict[str, Any]:
    """The document: by number of epochs and start, a result a seed."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with TemporaryDirectory(prefix="emnist-dali-fine-tuning-") as scratch:
        for seed in range(seeds):
            pack(few(folder, seed), "letters15", Path(scratch) / str(seed) / "letters15")
        for n in epochs:
            for start, changes in STARTS.items():
                base = cpu("letters15").override({"batch_size": 32, "val_fraction": 0.0, "epochs": n, **changes})
                results.setdefault(str(n), {})[start] = [
                    _trained(base.override({"seed": seed, "data_dir": str(Path(scratch) / str(seed))}))
                    for seed in range(seeds)
                ]
    return {
        "benchmark": "fine_tuning",
        "machine": environment("cpu"),
        "commit": commit(),
        "classes": CLASSES,
        "per_class": PER_CLASS,
        "config": base.override({"data_dir": "data"}).to_dict(),
        "results": results,
    }


def few(folder: Path, seed: int) -> Source:
    """PER_CLASS training images of each of CLASSES, drawn by `seed`, and all of their test images."""
    parts = {}
    for part in ("train", "test"):
        shards = Shards(folder, part)
        labels = shards.labels()
        numbers = [shards.manifest.classes.index(c) for c in CLASSES]
        of_class = [np.flatnonzero(labels == number) for number in numbers]
        if part == "train":
            of_class = [np.random.default_rng(seed).choice(found, PER_CLASS, replace=False) for found in of_class]
        new_labels = np.repeat(np.arange(len(CLASSES)), [len(found) for found in of_class])
        parts[part] = Part(shards.images(np.concatenate(of_class)), new_labels.astype(labels.dtype))
    return Source("few", CLASSES, parts, (), official=False)


def _trained(config: Config) -> dict[str, Any]:
    config = resolve(config)
    return run(config, training_shards(config))


def table(document: dict[str, Any]) -> str:
    """Markdown: test accuracy, mean over the seeds ± standard deviation."""
    lines = ["| epochs | " + " | ".join(STARTS) + " |", "|---" * (1 + len(STARTS)) + "|"]
    for n, by_start in document["results"].items():
        accuracies = [[100 * result["accuracy"] for result in by_start[start]] for start in STARTS]
        cells = [f"{mean(values):.2f} ± {stdev(values):.2f} %" for values in accuracies]
        lines.append(f"| {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
