#!/usr/bin/env python
"""How far answers can be trusted: prediction sets, and what tells characters from what is none.

python bench/trust.py
python bench/trust.py --model runs/<name> --pictures 100

Sets are measured on the whole test split. Pictures that are no characters are of the kinds of `outliers.py`, against
photographs of the test images at odd positions; with `--tuning`, of the kinds and at the positions that settings were
chosen on. Kana need a font: `pip install matplotlib-fontja`, or `--kana FILE`. The last line is a JSON document.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from sklearn.metrics import roc_auc_score

import handwriting
import outliers
from emnist_dali.commands.options import with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.core.progress import progress
from emnist_dali.data.shards import Shards
from emnist_dali.deploy.emnist_style import to_emnist_style
from emnist_dali.runs.classifier import Classifier, load_classifier
from emnist_dali.runs.prediction_sets import prediction_set, threshold
from emnist_dali.runs.typicality import UNTYPICAL
from result_file import commit, write_result_file

COVERAGES = (0.9, 0.95, 0.99, 0.995)
# The hardest of `handwriting.CONDITIONS`, and the easiest.
CONDITIONS = ("plain paper", "desk edge", "lines", "pencil", "thin strokes")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model", default="builtin", show_default=True, help="Run folder or .onnx.")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--pictures", type=click.IntRange(1), default=500, show_default=True, help="Of each kind.")
@click.option("--kana", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A font that has them.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--tuning", is_flag=True, help="On what settings are chosen on.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path),
    default=Path(__file__).parent / "records" / "trust.json",
    help="Result file to write.  [default: bench/records/trust.json]",
)  # fmt: skip
def main(
    model: str,
    split: str,
    data_dir: str,
    pictures: int,
    kana: Path | None,
    seed: int,
    tuning: bool,
    json_file: Path,
) -> None:
    """Coverage and size of prediction sets, and how well what is no character is told from photographs of some."""
    try:
        classifier, test = load_classifier(model), Shards(Path(data_dir) / split, "test")
        if tuple(test.manifest.classes) != classifier.classes or classifier.typicality is None:
            raise UserError(
                f"{model} has other classes than {test.folder}, or no typicality; choose another --model."
            )
        images = test.images(np.arange(0 if tuning else 1, len(test), 2))
        kinds = outliers.TUNING if tuning else {**outliers.KINDS, "two touching": outliers.touching(images)}
        if not tuning and (font := kana or _kana_font()):
            kinds["kana"] = outliers.kana(font)
        document = {
            "benchmark": "trust",
            "machine": environment("cpu"),
            "commit": commit(),
            "model": classifier.name,
            "split": split,
            "seed": seed,
            "tuning": tuning,
            "sets": measure_sets(classifier, test),
            **measure_refusals(classifier, images, kinds, pictures, seed),
        }
        write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def _kana_font() -> Path | None:
    package = find_spec("matplotlib_fontja")
    return Path(package.origin).parent / "fonts" / "ipaexg.ttf" if package else None


def measure_sets(classifier: Classifier, test: Shards) -> dict[str, dict[str, float]]:
    """By coverage: the share of test images whose set holds their class, the sets' mean size, those of size 1."""
    probabilities, labels = classifier.probabilities(test.images(np.arange(len(test)))), test.labels()
    result = {}
    for coverage in COVERAGES:
        least = threshold(classifier.thresholds, coverage)
        sets = [prediction_set(row, least) for row in probabilities]
        sizes = np.array(list(map(len, sets)))
        held = np.array([label in members for label, members in zip(labels, sets, strict=True)])
        result[str(coverage)] = {
            "coverage": float(held.mean()),
            "size": float(sizes.mean()),
            "single": float((sizes == 1).mean()),
        }
    return result


def measure_refusals(
    classifier: Classifier, images: np.ndarray, kinds: dict[str, Any], n: int, seed: int
) -> dict[str, Any]:
    """Of `n` pictures of each kind, and of the (N, 28, 28) `images` and their photographs.

    `without_ink` is the share in which no glyph is found, `untypical` that of the others with a warning; `auroc` and
    `auroc_of_probability` tell the others from photographs on plain paper, by typicality and by the largest
    probability.
    """
    rng = np.random.default_rng(seed)
    some = images[rng.choice(len(images), n, replace=False)]
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {"the images themselves": _scores(classifier, some)}
    result: dict[str, dict[str, Any]] = {"characters": {}, "others": {}}
    for condition in CONDITIONS:
        pictures = (handwriting.photograph(image, condition, rng) for image in some)
        scores[condition], _ = _of_pictures(classifier, pictures, n, condition)
    for name, (typicality, _) in scores.items():
        result["characters"][name] = {"untypical": float((typicality < UNTYPICAL).mean())}
    plain = scores["plain paper"]
    for kind, draw in kinds.items():
        of_kind, found = _of_pictures(classifier, (outliers.picture(draw, rng) for _ in range(n)), n, kind)
        entry: dict[str, float] = {"without_ink": 1 - found / n}
        if found:
            entry["untypical"] = float((of_kind[0] < UNTYPICAL).mean())
            for name, inside, outside in zip(("auroc", "auroc_of_probability"), plain, of_kind, strict=True):
                truth = np.arange(len(inside) + len(outside)) < len(inside)
                entry[name] = float(roc_auc_score(truth, np.concatenate([inside, outside])))
        result["others"][kind] = entry
    return result


def _of_pictures(classifier: Classifier, pictures: Any, n: int, name: str) -> tuple[tuple[np.ndarray, ...], int]:
    """The scores of the glyphs that are found in the pictures, and how many are."""
    glyphs = [
        glyph
        for picture in progress(pictures, description=name, total=n, unit=" pictures")
        if (glyph := to_emnist_style(picture)) is not None
    ]
    return _scores(classifier, np.array(glyphs, np.uint8).reshape(-1, *classifier.shape)), len(glyphs)


def _scores(classifier: Classifier, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) each: typicality, and the largest probability."""
    probabilities = classifier.probabilities(images)
    return classifier.typicality(probabilities), probabilities.max(1, initial=0)


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| sets of | hold the true class, % | characters | single, % |", "|---|---|---|---|"]
    for coverage, r in document["sets"].items():
        lines.append(
            f"| {100 * float(coverage):g} % | {100 * r['coverage']:.2f} | {r['size']:.2f} | {100 * r['single']:.1f} |"
        )
    lines += ["", "| characters | untypical, % |", "|---|---|"]
    for name, r in document["characters"].items():
        lines.append(f"| {name} | {100 * r['untypical']:.1f} |")
    lines += ["", "| no characters | AUROC, % | of the largest probability, % | untypical, % | no glyph found, % |"]
    lines += ["|---|---|---|---|---|"]
    for kind, r in document["others"].items():
        found = [
            f"{100 * r[name]:.1f}" if name in r else "–" for name in ("auroc", "auroc_of_probability", "untypical")
        ]
        lines.append(f"| {kind} | {' | '.join(found)} | {100 * r['without_ink']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
