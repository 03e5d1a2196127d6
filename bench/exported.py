#!/usr/bin/env python
"""Size, test accuracy and milliseconds a character of a run and of what it was exported to, in the browser too.

emnist-dali export builtin --output model.onnx
emnist-dali export builtin --int8 --output model-int8.onnx
emnist-dali export builtin --format web --output web
emnist-dali export builtin --format web --int8 --output web-int8
python bench/exported.py builtin model.onnx model-int8.onnx web web-int8

The split that they were trained on must be prepared. The last line is a JSON document.
"""

import io
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from PIL import Image, ImageDraw

from emnist_dali import load_classifier
from emnist_dali.commands.options import ModelPath, with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.deploy.decoder import decode
from emnist_dali.runs.folder import RunFolder
from result_file import check_result_file, commit, write_result_file
from web_page import open_page

# Answers, one image at a time; the first ones are not counted.
TIMED, WARM_UP = 200, 50
CANVAS = 560  # the side of the page's, in pixels


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("models", nargs=-1, required=True, type=ModelPath(exists=True, path_type=Path))
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(models: tuple[Path, ...], split: str, data_dir: str, json_file: Path | None) -> None:
    """Of each of MODELS, a run folder, an exported .onnx or an exported web page: bytes, accuracy on the test split,
    the share of images with the first one's class, and milliseconds a character."""
    try:
        check_result_file(json_file, "exported")
        document = measure(models, Shards(prepare(split, None, data_dir), "test"))
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(models: Sequence[Path], test: Shards) -> dict[str, Any]:
    """The document: a result a model, in their order; those of one name are compared with the first of them."""
    labels, results, firsts = test.labels(), [], {}
    for path in models:
        is_page = (path / "index.html").exists()
        name, found, result = (_measure_page if is_page else _measure_classifier)(path, test)
        results.append(
            {
                **result,
                "accuracy": float((found == labels).mean()),
                "same_class": float((found == firsts.setdefault(name, found)).mean()),
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


def _measure_classifier(path: Path, test: Shards) -> tuple[str, np.ndarray, dict[str, Any]]:
    """Name, the class of each test image, and the rest of the result."""
    classifier = load_classifier(path)
    _check_classes(path, classifier.classes, test)
    images, picture = test.images(np.arange(len(test))), _drawing()
    found = classifier.probabilities(images).argmax(1)
    each = iter(images)

    def read() -> None:
        glyph = decode(picture, classifier.shape, classifier.converted)
        classifier.probabilities(glyph.image[None])

    weights = RunFolder(path).best if path.is_dir() else path
    return classifier.name, found, {
        "file": path.name,
        "bytes": weights.stat().st_size,
        "milliseconds": _median_milliseconds(lambda: classifier.probabilities(next(each)[None])),
        "milliseconds_from_drawing": _median_milliseconds(read),
    }  # fmt: skip


def _measure_page(path: Path, test: Shards) -> tuple[str, np.ndarray, dict[str, Any]]:
    with open_page(path) as page:
        _check_classes(path, page.classes, test)
        blocks = np.array_split(np.arange(len(test)), len(test) // 1000 + 1)
        answers = [page.classify(test.images(block)) for block in blocks]
        found, milliseconds = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return page.name, found, {
            "file": f"{path.name}/",
            "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            "milliseconds": float(np.median(milliseconds[WARM_UP:])),
            "milliseconds_from_drawing": float(np.median(page.recognize(_drawing(), WARM_UP + TIMED)[WARM_UP:])),
            "browser": page.browser,
        }  # fmt: skip


def _check_classes(path: Path, classes: Sequence[str], test: Shards) -> None:
    if tuple(classes) != test.manifest.classes:
        raise UserError(f"{path} has other classes than {test.folder}; name its --split.")


def _median_milliseconds(answer: Callable[[], None]) -> float:
    times = []
    for _ in range(WARM_UP + TIMED):
        start = perf_counter()
        answer()
        times.append(1000 * (perf_counter() - start))
    return float(np.median(times[WARM_UP:]))


def _drawing() -> bytes:
    """A ring with a tail, drawn on the page's canvas: a PNG."""
    image, file = Image.new("L", (CANVAS, CANVAS), 255), io.BytesIO()
    draw = ImageDraw.Draw(image)
    draw.ellipse((150, 120, 410, 440), outline=0, width=CANVAS // 12)
    draw.line((300, 340, 430, 470), fill=0, width=CANVAS // 12)
    image.save(file, "PNG")
    return file.getvalue()


def table(document: dict[str, Any]) -> str:
    """Markdown: a row a model."""
    lines = [
        "| file | kB | ms a character | from a drawing | test accuracy | same class as the first of its run |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["results"]:
        cells = (
            row["file"],
            f"{row['bytes'] / 1e3:,.0f}",
            f"{row['milliseconds']:.2f}",
            f"{row['milliseconds_from_drawing']:.1f}",
            f"{100 * row['accuracy']:.2f} %",
            f"{100 * row['same_class']:.2f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
