#!/usr/bin/env python
"""Makes the model in the package, emnist_dali/weights/builtin/, from a run.

emnist-dali train --split balanced --recipe cpu --seed 2 --out runs/builtin
python bench/builtin_weights.py runs/builtin
"""

import json
from pathlib import Path
from typing import Any

import click

from emnist_dali.commands.options import with_flags
from emnist_dali.config import Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import write_atomic, write_json
from emnist_dali.core.tensor_files import encode
from emnist_dali.deploy.model_card import model_card
from emnist_dali.evaluation.evaluate import evaluate
from emnist_dali.runs.checkpoint import load_weights
from emnist_dali.runs.file_names import CONFIG, METRICS
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.schema import to_line
from emnist_dali.runs.trained_classifier import TrainedClassifier
from emnist_dali.weights import FILE, FOLDER

MAX_BYTES = 3_000_000
# What depends on the machine that trained; the others are `auto`.
_ANY_MACHINE = {"run.device": "auto", "data.backend": "auto", "run.amp": "off", "run.compile": "off", "run.out": None}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
def main(run: Path, data_dir: str) -> None:
    """Halves a run's best weights, and puts them with config and card into the package."""
    try:
        ship(run, data_dir)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error


def ship(run: Path, data_dir: str) -> None:
    """Writes the folder: weights in half precision, config, metrics and card."""
    folder = RunFolder(run)
    weights, about = load_weights(folder.best)
    about["data"] = about["data"].replace(str(folder.config().data.source), "files")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    content = encode(halved, {"about": json.dumps(about, ensure_ascii=False)})
    if len(content) > MAX_BYTES:
        raise UserError(f"{folder.best} has {len(content):,} bytes in half precision; train a smaller model.")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(FILE, content)
    config = folder.config().override({**_ANY_MACHINE, "data.source": None, "data.data_dir": "data"})
    write_json(FOLDER / CONFIG, config.to_dict())
    test = evaluate_shipped(data_dir)
    click.echo(
        f"{FOLDER}: {len(content) / 1e6:.2f} MB, {100 * test['accuracy']:.2f} % of {test['images']:,} test images, "
        f"expected calibration error {100 * test['calibration_error']:.2f} %."
    )


def evaluate_shipped(data_dir: str) -> dict[str, Any]:
    """Writes the metrics on the test split and the card of the weights in the package; returns the metrics."""
    results: dict[str, Any] = evaluate(FOLDER, data_dir=data_dir)
    entries = [{"kind": part, **result} for part, result in results.items()]
    write_atomic(FOLDER / METRICS, "".join(map(to_line, entries)).encode())
    shipped = TrainedClassifier(FOLDER)
    card = model_card(shipped, shipped.about, results, Path("builtin.safetensors"), [], _made_by(shipped.config))
    write_atomic(FOLDER / "README.md", card.encode())
    return results["test"]


def _made_by(config: Config) -> list[str]:
    command = f"emnist-dali train --split {config.data.split} --recipe {config.recipe} --seed {config.training.seed}"
    return [f"Made by `{command}` and `python bench/builtin_weights.py RUN`, in half precision."]


if __name__ == "__main__":
    main()
