#!/usr/bin/env python
"""How well pictures, pages and forms are read: composed from EMNIST's test images by `handwriting.py`.

python bench/reading.py
python bench/reading.py --model runs/<name> --pictures 200 --pages 4

Figures are of the test images at odd positions; `--tuning` takes those at even ones, on which the conversion and the
segmentation were tuned. The last line is a JSON document.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import handwriting
from emnist_dali.commands.options import with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.core.progress import progress
from emnist_dali.data.shards import Shards
from emnist_dali.deploy.emnist_style import SIZE, to_emnist_style
from emnist_dali.deploy.reading import (
    find_boxes,
    find_writing,
    read_boxes,
    read_writing,
    to_allowed,
)
from emnist_dali.runs.classifier import Classifier, load_classifier
from result_file import commit, write_result_file

PAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, 100 dpi": {"dpi": 100},
    "plain, 300 dpi": {"dpi": 300},
    "lines": {"ruled": "lines"},
    "squares": {"ruled": "squares", "colour": handwriting.BLUE},
    "noise": {"noise": 12},
    "skewed": {"skew": None},
    "a third touches": {"touching": 1 / 3},
    "shadow": {"shadow": True, "colour": handwriting.RED},
    "lines, skewed, shadow, blue": {"ruled": "lines", "skew": None, "shadow": True, "colour": handwriting.BLUE},
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "100 dpi": {"dpi": 100},
    "skewed, shadow, blue": {"skew": None, "shadow": True, "colour": handwriting.BLUE},
}
MAX_SKEW = 5  # degrees
PAGE_GLYPHS, FORM_BOXES = 50, 8


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model", default="builtin", show_default=True, help="Run folder or .onnx.")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--pictures", type=click.IntRange(1), default=1000, show_default=True, help="Of each condition.")
@click.option("--pages", type=click.IntRange(1), default=20, show_default=True, help="Of each kind.")
@click.option("--forms", type=click.IntRange(1), default=100, show_default=True, help="Of each kind.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--tuning", is_flag=True, help="On the images that settings are chosen on.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path),
    default=Path(__file__).parent / "records" / "reading.json",
    help="Result file to write.  [default: bench/records/reading.json]",
)  # fmt: skip
def main(
    model: str,
    split: str,
    data_dir: str,
    pictures: int,
    pages: int,
    forms: int,
    seed: int,
    tuning: bool,
    json_file: Path,
) -> None:
    """Accuracy of photographs by condition, character errors of pages, and accuracy of boxes of forms."""
    try:
        classifier = load_classifier(model)
        glyphs = Glyphs(Shards(Path(data_dir) / split, "test"), classifier, 0 if tuning else 1)
        document = {
            "benchmark": "reading",
            "machine": environment("cpu"),
            "commit": commit(),
            "model": classifier.name,
            "split": split,
            "seed": seed,
            "tuning": tuning,
            "pictures": {c: read_pictures(glyphs, c, pictures, seed) for c in handwriting.CONDITIONS},
            "pages": {kind: read_pages(glyphs, options, pages, seed) for kind, options in PAGES.items()},
            "forms": {kind: read_forms(glyphs, options, forms, seed) for kind, options in FORMS.items()},
        }
        write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


class Glyphs:
    """Every other image of a test split, and the classifier that reads it."""

    def __init__(self, shards: Shards, classifier: Classifier, first: int) -> None:
        self._shards, self._labels = shards, shards.labels()
        self._indices = np.arange(first, len(shards), 2)
        self.classifier = classifier
        if tuple(shards.manifest.classes) != classifier.classes:
            raise UserError(f"{classifier.name} has other classes than {shards.folder}; choose another --split.")

    def draw(self, n: int, rng: np.random.Generator, characters: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(n, 28, 28) uint8 and (n,) labels, each once; of the `characters` only, if given."""
        indices = self._indices
        if characters is not None:
            labels = [self.classifier.classes.index(character) for character in characters]
            indices = indices[np.isin(self._labels[indices], labels)]
        chosen = np.sort(rng.choice(indices, n, replace=False))
        order = rng.permutation(n)
        return self._shards.images(chosen)[order], self._labels[chosen][order]


def read_pictures(glyphs: Glyphs, condition: str, n: int, seed: int) -> dict[str, float]:
    """Accuracy on `n` photographs in a condition, of the same glyphs in each, and milliseconds for converting one."""
    images, labels = glyphs.draw(n, np.random.default_rng(seed))
    rng, converted, seconds = np.random.default_rng(seed + 1), [], 0.0
    for image in progress(images, description=condition, unit=" pictures"):
        picture = handwriting.photograph(image, condition, rng)
        start = time.perf_counter()
        glyph = to_emnist_style(picture)
        seconds += time.perf_counter() - start
        converted.append(np.zeros((SIZE, SIZE), np.uint8) if glyph is None else glyph)
    return {
        "accuracy": _accuracy(glyphs.classifier, np.stack(converted), labels),
        "accuracy_of_images": _accuracy(glyphs.classifier, images, labels),
        "milliseconds": 1000 * seconds / n,
    }


def _accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    return float((classifier.probabilities(images).argmax(1) == labels).mean())


def read_pages(glyphs: Glyphs, options: dict[str, Any], n: int, seed: int) -> dict[str, float]:
    """Detection F1 at an overlap of a half, character error rates, share of pages read whole, and seconds a page.

    The error rate of the same glyphs as single images is that of EMNIST's own images.
    """
    rng, classes = np.random.default_rng(seed), glyphs.classifier.classes
    found = hits = errors = singles = spaces = 0
    whole, seconds = 0, 0.0
    for _ in progress(range(n), description="pages", unit=" pages"):
        images, labels = glyphs.draw(PAGE_GLYPHS, rng)
        singles += int((glyphs.classifier.probabilities(images).argmax(1) != labels).sum())
        page = handwriting.page(images, rng, **_skewed(options, rng))
        start = time.perf_counter()
        reading = read_writing(find_writing(page.image.convert("L")), glyphs.classifier)
        seconds += time.perf_counter() - start
        boxes = np.array([c.box for line in reading.lines for c in line], float).reshape(-1, 4)
        hits += _matches(page.boxes, boxes)
        found += len(boxes)
        expected = "\n".join(
            "".join(" " * (i in spaces) + classes[labels[place]] for i, place in enumerate(line))
            for line, spaces in zip(page.lines, page.spaces, strict=True)
        )
        errors += edit_distance(_unspaced(expected), _unspaced(reading.text))
        spaces += int(_words(expected) == _words(reading.text))
        whole += expected == reading.text
    total = n * PAGE_GLYPHS
    return {
        "detection_f1": 2 * hits / (found + total),
        "character_error": errors / total,
        "character_error_of_images": singles / total,
        "pages_with_right_words": spaces / n,
        "pages_read_whole": whole / n,
        "seconds": seconds / n,
    }


def _skewed(options: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return options | ({"skew": rng.uniform(-MAX_SKEW, MAX_SKEW)} if "skew" in options else {})


def _matches(truth: np.ndarray, boxes: np.ndarray) -> int:
    """How many boxes (n, 4) have one of their own among (m, 4) that overlaps by a half: intersection over union."""
    left = list(boxes)
    for box in truth:
        overlaps = [_overlap(box, other) for other in left]
        if overlaps and max(overlaps) > 0.5:
            left.pop(int(np.argmax(overlaps)))
    return len(boxes) - len(left)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = sides.clip(0).prod()
    return shared / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared)


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and substitutions (Levenshtein).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def _unspaced(text: str) -> str:
    return text.replace(" ", "").replace("\n", "")


def _words(text: str) -> list[list[int]]:
    """How long the words of each line are."""
    return [[len(word) for word in line.split()] for line in text.split("\n")]


def read_forms(glyphs: Glyphs, options: dict[str, Any], n: int, seed: int) -> dict[str, float]:
    """Share of boxes, and of rows of eight, that are read right with the digits allowed."""
    rng, classes = np.random.default_rng(seed), glyphs.classifier.classes
    digits = to_allowed(glyphs.classifier, "0-9")
    right, rows, singles = 0, 0, 0
    for _ in progress(range(n), description="forms", unit=" forms"):
        images, labels = glyphs.draw(FORM_BOXES, rng, "0123456789")
        singles += int((glyphs.classifier.probabilities(images)[:, digits.anywhere].argmax(1) == labels).sum())
        picture = handwriting.form(images, rng, **_skewed(options, rng))
        form, correct = find_boxes(picture.convert("L"), FORM_BOXES), 0
        if len(form.boxes) == FORM_BOXES:
            (line,) = read_boxes(form, glyphs.classifier, digits).lines
            correct = sum(c.character == classes[label] for c, label in zip(line, labels, strict=True))
        right, rows = right + correct, rows + (correct == FORM_BOXES)
    total = n * FORM_BOXES
    return {"boxes": right / total, "boxes_of_images": singles / total, "rows": rows / n}


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    plain = document["pictures"]["plain paper"]["accuracy"]
    lines = ["| photographs | accuracy, % | of plain paper |", "|---|---|---|"]
    for condition, result in document["pictures"].items():
        lines.append(f"| {condition} | {100 * result['accuracy']:.1f} | {result['accuracy'] / plain:.3f} |")
    lines += ["", "| pages | detection F1 | character error, % | of the images, % | words found, % of pages | s |"]
    lines += ["|---|---|---|---|---|---|"]
    for kind, r in document["pages"].items():
        lines.append(
            f"| {kind} | {r['detection_f1']:.4f} | {100 * r['character_error']:.1f} "
            f"| {100 * r['character_error_of_images']:.1f} | {100 * r['pages_with_right_words']:.0f} "
            f"| {r['seconds']:.1f} |"
        )
    lines += ["", "| forms | boxes, % | of the images, % | rows of eight, % |", "|---|---|---|---|"]
    for kind, r in document["forms"].items():
        lines.append(
            f"| {kind} | {100 * r['boxes']:.2f} | {100 * r['boxes_of_images']:.2f} | {100 * r['rows']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
