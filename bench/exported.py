#!/usr/bin/env python
"""Size and test accuracy of exported ONNX files.

emnist-dali export builtin --output model.onnx
emnist-dali export builtin --int8 --output model-int8.onnx
python bench/exported.py model.onnx model-int8.onnx --json bench/records/exported-cpu-2-cores.json

The split that they were trained on must be prepared. The last line is a JSON document.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from emnist_dali import load_classifier
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.options import with_flags
from result_file import check_result_file, commit, write_result_file


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(models: tuple[Path, ...], split: str, data_dir: str, json_file: Path | None) -> None:
    """Bytes, accuracy on the test split, and the share of images with the class that the run's first file gives."""
    try:
        check_result_file(json_file, "exported")
        document = measure(models, Shards(prepare(split, None, data_dir), "test"))
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(models: tuple[Path, ...], test: Shards) -> dict[str, Any]:
    """The document: a result a file, in their order."""
    images, labels = test.images(np.arange(len(test))), test.labels()
    results, firsts = [], {}
    for path in models:
        classifier = load_classifier(path)
        if classifier.classes != test.manifest.classes:
            raise UserError(f"{path} has other classes than {test.folder}; name its --split.")
        found = classifier.probabilities(images).argmax(1)
        results.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "accuracy": float((found == labels).mean()),
                "same_class": float((found == firsts.setdefault(classifier.name, found)).mean()),
            }
        )
    return {
        "benchmark": "exported",
        "machine": environment("cpu"),
        "onnxruntime": version("onnxruntime"),
        "commit": commit(),
        "data": {"split": test.manifest.split, "fingerprint": test.manifest.fingerprint, "images": len(labels)},
        "results": results,
    }


def table(document: dict[str, Any]) -> str:
    """Markdown: a row a file."""
    lines = ["| file | kB | test accuracy | same class as the run's first file |", "|---|---|---|---|"]
    for row in document["results"]:
        lines.append(
            f"| {row['file']} | {row['bytes'] / 1e3:,.0f} | {100 * row['accuracy']:.2f} % | "
            f"{100 * row['same_class']:.2f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
