#!/usr/bin/env python
"""How well the conversion in JavaScript, of the page that `export --format web` writes, agrees with Python's.

python bench/web_agreement.py --json bench/records/web-agreement.json

Photographs in every condition of `handwriting.py`, and drawings as the page's canvas holds them, of test images at
odd positions. Needs playwright and Chromium. The last line is a JSON document.
"""

import base64
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

import handwriting
from emnist_dali.commands.options import with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.core.progress import progress
from emnist_dali.data.shards import Shards
from emnist_dali.deploy import emnist_style
from emnist_dali.deploy.emnist_style import SIZE, Glyph, find_glyph
from emnist_dali.runs.classifier import Classifier, load_classifier
from result_file import check_result_file, commit, write_result_file
from web_page import chromium

CONVERT_JS = Path(emnist_style.__file__).parent / "web" / "convert.js"
DRAWING, CANVAS = "drawing", 560
KINDS = (*handwriting.CONDITIONS, DRAWING)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model", default="builtin", show_default=True, help="Run folder or .onnx.")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--pictures", type=click.IntRange(1), default=100, show_default=True, help="Of each kind.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(model: str, split: str, data_dir: str, pictures: int, seed: int, json_file: Path | None) -> None:
    """Share of pictures with equal 28×28 images and with the same class, by kind of picture."""
    from playwright.sync_api import sync_playwright

    try:
        check_result_file(json_file, "web_agreement")
        test = Shards(Path(data_dir) / split, "test")
        rng = np.random.default_rng(seed)
        images = test.images(np.sort(rng.choice(np.arange(1, len(test), 2), pictures, replace=False)))
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            results = measure(open_page(browser), images, load_classifier(model), rng)
            version = browser.version
            browser.close()
        document = {
            "benchmark": "web_agreement",
            "machine": environment("cpu"),
            "commit": commit(),
            "chromium": version,
            "data": {"split": split, "fingerprint": test.manifest.fingerprint},
            "seed": seed,
            "results": results,
        }
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(results))
    click.echo(json.dumps(document, ensure_ascii=False))


def open_page(browser: Any) -> Any:
    """An empty page of playwright's browser, with convert.js."""
    page = browser.new_page()
    page.add_script_tag(path=CONVERT_JS)
    return page


def find_glyph_in(page: Any, picture: Image.Image) -> tuple[Glyph | None, float]:
    """`find_glyph` in the browser, and its milliseconds."""
    rgba = base64.b64encode(picture.convert("RGBA").tobytes()).decode()
    answer, milliseconds = page.evaluate(
        """([rgba, width, height]) => {
            const bytes = atob(rgba), data = new Uint8ClampedArray(bytes.length)
            for (let i = 0; i < data.length; i++) data[i] = bytes.charCodeAt(i)
            const start = performance.now(), glyph = findGlyph({ data, width, height })
            const milliseconds = performance.now() - start
            return [glyph && [[...glyph.image], glyph.warning], milliseconds]
        }""",
        [rgba, *picture.size],
    )
    if answer is None:
        return None, milliseconds
    image, warning = answer
    return Glyph(np.array(image, np.uint8).reshape(SIZE, SIZE), warning), milliseconds


def draw(glyph: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A (28, 28) uint8 glyph, light on dark, as a drawing in black on the page's white canvas."""
    side = int(rng.integers(CANVAS // 3, CANVAS))
    canvas = np.zeros((CANVAS, CANVAS), np.float32)
    top, left = rng.integers(0, CANVAS - side + 1, 2)
    canvas[top : top + side, left : left + side] = handwriting.reinked(glyph, side)
    return Image.fromarray(np.rint(255 * (1 - canvas)).astype(np.uint8))


def measure(page: Any, images: np.ndarray, classifier: Classifier, rng: np.random.Generator) -> dict[str, Any]:
    """By kind, of (n, 28, 28) uint8 images in each."""
    return {kind: _measure(page, images, kind, classifier, rng) for kind in KINDS}


def _measure(
    page: Any, images: np.ndarray, kind: str, classifier: Classifier, rng: np.random.Generator
) -> dict[str, Any]:
    pairs, milliseconds, blank = [], [], Glyph(np.zeros((SIZE, SIZE), np.uint8), "no ink")
    for image in progress(images, description=kind, unit=" pictures"):
        picture = draw(image, rng) if kind == DRAWING else handwriting.photograph(image, kind, rng)
        expected, (found, duration) = find_glyph(picture) or blank, find_glyph_in(page, picture)
        found = found or blank
        milliseconds.append(duration)
        if expected.warning == found.warning:
            pairs.append((expected.image, found.image))
    python, browser = np.array(pairs, np.uint8).reshape(-1, 2, SIZE, SIZE).swapaxes(0, 1)
    differences = np.abs(python.astype(int) - browser).reshape(-1, SIZE * SIZE)
    classes = [classifier.probabilities(each).argmax(1) for each in (python, browser)]
    n = len(images)
    return {
        "pictures": n,
        "equal_images": int((~differences.any(1)).sum()) / n,
        "same_class": int((classes[0] == classes[1]).sum()) / n,
        "greatest_difference": int(differences.max(initial=0)),
        "mean_difference": float(differences.mean()) if len(pairs) else 0.0,
        "milliseconds": float(np.median(milliseconds)),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a kind."""
    lines = ["| pictures | equal images | same class | greatest difference | ms |", "|---|---|---|---|---|"]
    for kind, row in results.items():
        lines.append(
            f"| {row['pictures']:,} × {kind} | {100 * row['equal_images']:.2f} % | {100 * row['same_class']:.2f} % | "
            f"{row['greatest_difference']} | {row['milliseconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
