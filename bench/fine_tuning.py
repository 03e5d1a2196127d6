#!/usr/bin/env python
"""What starting from the model in the package gains on 600 images of other classes.

python bench/fine_tuning.py --json bench/records/fine-tuning-cpu-2-cores.json

Eight small letters that Balanced merges with their capitals, 75 training and 100 test images each, drawn by the seed
from the test part of ByClass, without those that are among Balanced's training images: the model in the package has
seen them. Balanced and ByClass must be prepared. The last line is a JSON document.
"""

import json
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from emnist_dali.commands.options import with_flags
from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.pack import pack
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.recipes import cpu
from emnist_dali.runtime import resolve
from emnist_dali.training.build import training_shards
from result_file import check_result_file, commit, write_result_file
from time_to_accuracy import run

CLASSES = tuple("cilmopsu")  # the others have fewer than 50 such images
PER_CLASS, TEST_PER_CLASS = 75, 100
STARTS = {"random weights": {}, "builtin": {"weights": "builtin"}}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Number of seeds: 0, 1, 2, …")
@click.option("--epochs", type=click.IntRange(1), multiple=True, default=(1, 10), show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(seeds: int, epochs: tuple[int, ...], data_dir: str, json_file: Path | None) -> None:
    """Test accuracy after a short training on few images, from random weights and from those in the package."""
    try:
        check_result_file(json_file, "fine_tuning")
        document = measure(prepare("byclass", None, data_dir), prepare("balanced", None, data_dir), seeds, epochs)
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(folder: Path, balanced: Path, seeds: int, epochs: tuple[int, ...]) -> dict[str, Any]:
    """The document: by number of epochs and start, a result a seed."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    shards = Shards(balanced, "train")
    seen = {image.tobytes() for image in shards.images(np.arange(len(shards)))}
    with TemporaryDirectory(prefix="emnist-dali-fine-tuning-") as scratch:
        for seed in range(seeds):
            pack(few(folder, seen, seed), "letters8", Path(scratch) / str(seed) / "letters8")
        for n in epochs:
            for start, changes in STARTS.items():
                base = cpu("letters8").override({"batch_size": 32, "val_fraction": 0.0, "epochs": n, **changes})
                results.setdefault(str(n), {})[start] = [
                    _trained(base.override({"seed": seed, "data_dir": str(Path(scratch) / str(seed))}))
                    for seed in range(seeds)
                ]
    return {
        "benchmark": "fine_tuning",
        "machine": environment("cpu"),
        "commit": commit(),
        "classes": CLASSES,
        "images_per_class": {"train": PER_CLASS, "test": TEST_PER_CLASS},
        "config": base.override({"data_dir": "data"}).to_dict(),
        "results": results,
    }


def few(folder: Path, seen: set[bytes], seed: int) -> Source:
    """PER_CLASS and TEST_PER_CLASS images of each of CLASSES in the test part, drawn by `seed`, without `seen`."""
    shards, generator = Shards(folder, "test"), np.random.default_rng(seed)
    labels, train, test = shards.labels(), [], []
    for character in CLASSES:
        images = shards.images(np.flatnonzero(labels == shards.manifest.classes.index(character)))
        new = np.stack([image for image in images if image.tobytes() not in seen])
        drawn = generator.permutation(new)[: PER_CLASS + TEST_PER_CLASS]
        train.append(drawn[:PER_CLASS])
        test.append(drawn[PER_CLASS:])
    numbers = np.arange(len(CLASSES), dtype=labels.dtype)
    parts = {
        "train": Part(np.concatenate(train), numbers.repeat(PER_CLASS)),
        "test": Part(np.concatenate(test), numbers.repeat(TEST_PER_CLASS)),
    }
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
