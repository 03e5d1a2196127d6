"""What is in the shards and what the model sees of it, as one HTML page."""

from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..core.errors import UserError
from ..core.files import check_output, write_output
from ..data.manifest import Manifest
from ..data.prepare import prepare
from ..data.shards import Shards
from ..data.stats import Stats, statistics
from ..training import mixing
from .charts import Axis, BarChart, Series, bar_chart, share, xy_chart
from .html import render
from .pipeline_trace import (
    SEARCHED_BATCHES,
    Trace,
    choose_batches,
    denormalize,
    equalize,
    evenly_spaced,
    mix_of,
    trace,
    training_plan,
)
from .run_data import part_name

IMAGES_PER_CLASS, IMAGES_OF_ONE_CLASS = 8, 240  # shown
HISTOGRAM_IMAGES = 2_000

_STAGES = {
    "decoded": "from the shard",
    "equalized": "histogram equalized",
    "resized": "and normalized, as in evaluation",
    "warped": "instead of the resize",
    "partner": "from the other end of the batch",
    "mixed": "as the model gets it",
}


def write_inspect_report(config: Config, character: str | None, augmented: bool, out: Path) -> Path:
    """Writes the page about the train part of `config`'s split, all of it or the class `character`; returns `out`.

    Raises UserError if there is no such class or it has no training image, the data cannot be prepared, or
    `out` exists and was not written by this project.
    """
    check_output(out)
    folder = prepare(config.data.split, config.data.source, config.data.data_dir)
    shards = Shards(folder, "train")
    manifest = shards.manifest
    label = None if character is None else _label(manifest, character)
    stats = statistics(folder, config.data.image_size, config.data.equalize)
    plan = training_plan(config, shards)
    batches = choose_batches(config, plan, label, augmented)
    page = render(
        "inspect.html",
        title=f"Inside {manifest.split}",
        config=config,
        manifest=manifest,
        stats=stats,
        classes=_cut(", ".join(manifest.classes), 400),
        character=None if label is None else _short(character),
        counts=_counts(manifest) if label is None else {part: n[label] for part, n in manifest.counts.items()},
        training_images=_training_images(shards, label),
        plan=plan,
        augmented=augmented,
        first_mixes=[_mix_name(mix_of(config, plan, i)) for i in range(min(plan.batches, 10))],
        searched_batches=SEARCHED_BATCHES,
        batches=[_batch(trace(config, plan, stats, i, label, augmented), manifest.classes, stats) for i in batches],
        histogram=_histogram(shards, stats, label),
    )
    write_output(out, page)
    return out


def _label(manifest: Manifest, character: str) -> int:
    if character not in manifest.classes:
        known = _cut(", ".join(manifest.classes), 200)
        raise UserError(f"{manifest.split} has no class {character!r}; take one of {known} (case matters).")
    label = manifest.classes.index(character)
    if not manifest.counts["train"][label]:
        raise UserError(f"{manifest.split} has no training image of class {character!r}; take another class.")
    return label


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _short(name: str) -> str:
    return _cut(name, 24)


def _counts(manifest: Manifest) -> BarChart:
    counts = {part_name(part): images for part, images in manifest.counts.items()}
    tips = [
        "\n".join([name, *(f"{part}: {images[i]:,} images" for part, images in counts.items())])
        for i, name in enumerate(manifest.classes)
    ]
    return bar_chart(manifest.classes, counts, tips, Axis())


def _training_images(shards: Shards, label: int | None) -> list[dict[str, Any]]:
    """Images of each class, or more of the class `label`."""
    labels, manifest = shards.labels(), shards.manifest
    classes = range(len(manifest.classes)) if label is None else [label]
    most = IMAGES_PER_CLASS if label is None else IMAGES_OF_ONE_CLASS
    rows = []
    for k in classes:
        indices = evenly_spaced(np.flatnonzero(labels == k), most)
        images = list(zip(indices, shards.images(indices), strict=True))
        rows.append({"class": _short(manifest.classes[k]), "count": manifest.counts["train"][k], "images": images})
    return rows


def _mix_name(mix: mixing.Mix) -> str:
    if mix.weight == 1:
        return "no mixing"
    return f"{'MixUp' if mix.box is None else 'CutMix'} λ = {mix.weight:.2f}"


def _batch(traced: Trace, classes: tuple[str, ...], stats: Stats) -> dict[str, Any]:
    """The stages of the traced images: a column per stage, a row per image."""
    mix = traced.mix
    rows = []
    for k, (index, label) in enumerate(zip(traced.indices, traced.labels, strict=True)):
        stages = [
            {
                "image": images[k] if images.dtype == np.uint8 else denormalize(images[k], stats),
                "range": _range(images[k]),
                "partner": _short(classes[traced.partners[k]]) if name == "partner" else "",
            }
            for name, images in traced.stages.items()
        ]
        named = [label] if mix.weight == 1 else list(dict.fromkeys([label, traced.partners[k]]))
        others = np.delete(traced.targets[k], named)
        rows.append(
            {
                "class": _short(classes[label]),
                "index": index,
                "stages": stages,
                "target": [(_short(classes[i]), traced.targets[k, i]) for i in named],
                "others": others[0] if len(others) else None,
            }
        )
    columns = [
        {"name": name, "about": _STAGES[name], "shape": images.shape[1:], "dtype": images.dtype}
        for name, images in traced.stages.items()
    ]
    return {
        "number": traced.batch + 1,
        "mix": _mix_name(mix) if mix.weight < 1 else "",
        "box": mix.box,
        "columns": columns,
        "rows": rows,
    }


def _range(image: np.ndarray) -> str:
    low, high = image.min(), image.max()
    text = f"{low} … {high}" if image.dtype == np.uint8 else f"{low:.2f} … {high:.2f}"
    return text.replace("-", "−")


def _histogram(shards: Shards, stats: Stats, label: int | None) -> dict[str, Any]:
    """Grey levels of some training images, all of class `label` unless it is None."""
    labels = shards.labels()
    indices = np.arange(len(labels)) if label is None else np.flatnonzero(labels == label)
    indices = evenly_spaced(indices, HISTOGRAM_IMAGES)
    stages = {"decoded": shards.images(indices)}
    if stats.equalize:
        stages["equalized"] = equalize(shards, indices)
    series = []
    for name, images in stages.items():
        shares = np.bincount(images.ravel(), minlength=256) / images.size
        levels = np.flatnonzero(shares)  # a logarithmic axis has no 0
        series.append(Series(name=name, x=levels.tolist(), y=shares[levels].tolist(), dots=False))
    x = Axis(title="grey level", low=0, high=255, whole=True)
    chart = xy_chart(series, x, Axis(title="share of the pixels", format=share, log=True))
    return {"chart": chart, "images": len(indices)}
