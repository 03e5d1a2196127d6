"""What is in the shards, and what the model sees of it, as one HTML page."""

import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..config import Config
from ..core.errors import UserError
from ..core.files import check_output, write_output
from ..data.manifest import Manifest
from ..data.prepare import prepare
from ..data.shards import Shards
from ..data.stats import Stats, statistics
from ..loading.batch_plan import BatchPlan
from ..training import mixing
from .html import chart, need_plotly, page, png, table
from .pipeline_trace import LOOKED_THROUGH, Followed, chosen, equalized, follow, grey, mix_of, spread, training_plan

A_CLASS, OF_ONE_CLASS = 8, 240  # images in the gallery
COUNTED = 2_000  # images whose grey levels are counted

_ABOUT = {
    "decoded": "from the shard",
    "equalized": "to an even histogram",
    "resized": "and normalized, as for evaluation",
    "warped": "in the place of the resize",
    "partner": "from the other end of the batch",
    "mixed": "as the model gets it",
}
_STYLE = """<style>
.data td:first-child { white-space: nowrap }
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: .5rem 1.5rem }
.classes > div { display: flex; gap: .75rem; align-items: center }
.classes span { flex: 0 0 5rem; line-height: 1.2; font-size: .85rem } .classes b { font-size: 1.1rem }
.strip { display: flex; flex-wrap: wrap; gap: 2px } .strip img { width: 1.75rem } .large img { width: 2.75rem }
.stages th, .stages td { width: clamp(4.5rem, 10vw, 7rem); min-width: 4.5rem; font-size: .85rem; line-height: 1.3 }
.stages img { width: 100%; height: auto; margin: 0 } .stages th small { font-weight: normal }
.strip img, .stages img { display: block; image-rendering: pixelated; outline: 1px solid var(--line) }
</style>
"""


def write_page(config: Config, character: str | None, augmented: bool, out: Path) -> Path:
    """Writes the page on the train part of `config`'s split, all of it or the class `character`; returns `out`.

    Raises UserError where there is no such class or no image of it, plotly is missing, the data cannot be had, or
    `out` is there and was not written by this project.
    """
    need_plotly()
    check_output(out)
    folder = prepare(config.data.split, config.data.source, config.data.data_dir)
    shards = Shards(folder, "train")
    manifest = shards.manifest
    label = None if character is None else _label(manifest, character)
    stats = statistics(folder, config.data.image_size, config.data.equalize)
    plan = training_plan(config, shards)
    followed = [follow(config, plan, stats, i, label, augmented) for i in chosen(config, plan, label, augmented)]
    of = "" if character is None else f", class {_short(character)}"
    body = (
        f"{_STYLE}<h2>The data</h2>\n{_data(manifest, stats, config)}"
        f"<h2>Class counts</h2>\n{_counts(manifest, label)}"
        f"<h2>Training images{of}</h2>\n{_classes(shards, label)}"
        f"<h2>Stage by stage{of}</h2>\n{_recipe(config, plan, augmented)}"
    )
    if not followed:
        body += f"<p>The first {LOOKED_THROUGH} batches have no image of this class.</p>\n"
    body += "".join(_stages(one, manifest.classes, stats) for one in followed)
    body += f"<h2>Grey levels{of}</h2>\n{_levels(shards, stats, label)}"
    write_output(out, page(f"Inside {manifest.split}", body, charts=True).encode())
    return out


def _label(manifest: Manifest, character: str) -> int:
    if character not in manifest.classes:
        known = _cut(", ".join(manifest.classes), 200)
        raise UserError(f"{manifest.split} has no class {character!r}; take one of {known} (case matters).")
    label = manifest.classes.index(character)
    if not manifest.counts["train"][label]:
        raise UserError(f"{manifest.split} has no training image of class {character!r}; take another one.")
    return label


def _data(manifest: Manifest, stats: Stats, config: Config) -> str:
    height, width = manifest.shape
    size, known = config.data.image_size, ", ".join(manifest.classes)
    rows = [
        ("Data", html.escape(str(manifest))),
        ("Images", ", ".join(f"{sum(counts):,} {part}" for part, counts in manifest.counts.items())),
        ("Classes", f"{len(manifest.classes)}: {html.escape(_cut(known, 400))}"),
        ("Stored as", f"{height} × {width} pixels of 8 bits, {manifest.codec} records"),
        (
            "Statistics",
            f"mean {stats.mean:.4f}, standard deviation {stats.std:.4f}, on the scale 0 … 1, of the training images "
            f"{'equalized and ' if stats.equalize else ''}resized to {size} × {size}",
        ),
    ]
    for file in manifest.files:
        official = "the official file" if file["official"] else "not the official file"
        about = f"{file['bytes']:,} bytes, {official}<br><small>sha256 {html.escape(file['sha256'])}</small>"
        rows.append(("File", f"{html.escape(file['name'])}, {about}"))
    return f'<div class="data">{table((), rows)}</div>\n'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _short(name: str) -> str:
    return html.escape(_cut(name, 24))


def _counts(manifest: Manifest, label: int | None) -> str:
    if label is not None:
        counts = ", ".join(f"{counts[label]:,} {part}" for part, counts in manifest.counts.items())
        return f"<p>{_short(manifest.classes[label])}: {counts}.</p>\n"
    import plotly.graph_objects as go

    names = [html.escape(name) for name in manifest.classes]
    figure = go.Figure([go.Bar(name=part, x=names, y=counts) for part, counts in manifest.counts.items()])
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.1})
    labels = dict(zip(names, map(_short, manifest.classes), strict=True))
    figure.update_xaxes(type="category", labelalias=labels)
    return chart(figure)


def _classes(shards: Shards, label: int | None) -> str:
    labels, manifest = shards.labels(), shards.manifest
    if label is not None:
        return _strip(shards, spread(np.flatnonzero(labels == label), OF_ONE_CLASS), "strip large")
    rows = (
        f"<div><span><b>{_short(name)}</b><br>{manifest.counts['train'][k]:,}</span>"
        f"{_strip(shards, spread(np.flatnonzero(labels == k), A_CLASS), 'strip')}</div>"
        for k, name in enumerate(manifest.classes)
    )
    return '<div class="classes">\n' + "\n".join(rows) + "\n</div>\n"


def _strip(shards: Shards, indices: np.ndarray, kind: str) -> str:
    images = "".join(
        f'<img src="{png(image)}" alt="" title="train image {i:,}">'
        for i, image in zip(indices, shards.images(indices), strict=True)
    )
    return f'<div class="{kind}">{images}</div>'


def _recipe(config: Config, plan: BatchPlan, augmented: bool) -> str:
    """What the recipe does to images in training, and which of them are shown."""
    training = config.training
    does = ["warps them" if config.data.affine else "warps nothing"]
    does += ["mixes them" if training.mixing else "mixes nothing"]
    said = (
        f"Images of the first epoch, in batches of {plan.spec.batch_size:,}, seed {training.seed}. In training, recipe "
        f"{html.escape(config.recipe)} {' and '.join(does)}{'' if augmented else '; --augment shows it'}. Normalized "
        "images are drawn by the statistics above, with their range below."
    )
    if augmented and training.mixing:
        firsts = ", ".join(_mixed(mix_of(config, plan, i)) for i in range(min(plan.batches, 10)))
        said += (
            f" λ is the share of an image's own label; the first batches have {firsts}. Of the first "
            f"{LOOKED_THROUGH}, those are shown that MixUp and CutMix mix most evenly."
        )
    return f"<p>{said}</p>\n"


def _mixed(how: mixing.Mix) -> str:
    if how.weight == 1:
        return "no mixing"
    return f"{'MixUp' if how.box is None else 'CutMix'} λ = {how.weight:.2f}"


def _stages(followed: Followed, classes: tuple[str, ...], stats: Stats) -> str:
    how = followed.how
    said = f"Batch {followed.batch + 1}"
    if how.weight < 1:
        said += f": {_mixed(how)}"
    if how.box:
        top, bottom, left, right = how.box
        said += f"; rows {top} to {bottom - 1}, columns {left} to {right - 1} are the partner's"
    header = ["label"]
    for name, images in followed.stages.items():
        height, width = images.shape[1:]
        header.append(f"{name}<br><small>{_ABOUT[name]}<br>{height} × {width} {images.dtype}</small>")
    header.append("soft target<br><small>what the loss gets</small>")
    rows = []
    for k, (index, label) in enumerate(zip(followed.indices, followed.labels, strict=True)):
        cells = [f"<b>{_short(classes[label])}</b><br><small>train image {index:,}</small>"]
        for name, images in followed.stages.items():
            shown = images[k] if images.dtype == np.uint8 else grey(images[k], stats)
            partner = f"<b>{_short(classes[followed.partners[k]])}</b> " if name == "partner" else ""
            cells.append(f'<img src="{png(shown)}" alt=""><small>{partner}{_range(images[k])}</small>')
        mixed = [label] if how.weight == 1 else [label, followed.partners[k]]
        rows.append([*cells, _target(followed.targets[k], mixed, classes)])
    return f'<h3>{said}</h3>\n<div class="stages">{table(header, rows)}</div>\n'


def _range(image: np.ndarray) -> str:
    low, high = image.min(), image.max()
    said = f"{low} … {high}" if image.dtype == np.uint8 else f"{low:.2f} … {high:.2f}"
    return said.replace("-", "−")


def _target(target: np.ndarray, labels: Iterable[int], classes: tuple[str, ...]) -> str:
    named = list(dict.fromkeys(labels))
    said = "<br>".join(f"<b>{_short(classes[label])}</b> {target[label]:.3f}" for label in named)
    others = np.delete(target, named)
    return f"{said}<br><small>others {others[0]:.4f}</small>" if len(others) else said


def _levels(shards: Shards, stats: Stats, label: int | None) -> str:
    import plotly.graph_objects as go

    labels = shards.labels()
    indices = np.flatnonzero(labels == label) if label is not None else np.arange(len(labels))
    indices = spread(indices, COUNTED)
    shown = {"decoded": shards.images(indices)}
    if stats.equalize:
        shown["equalized"] = equalized(shards, indices)
    figure = go.Figure()
    for name, images in shown.items():
        counts = np.bincount(images.ravel(), minlength=256)
        figure.add_scatter(name=name, y=100 * counts / images.size, mode="lines")
    figure.update_layout(legend={"orientation": "h", "y": 1.1})
    figure.update_xaxes(title="grey level")
    figure.update_yaxes(title="% of the pixels", type="log", dtick=1)
    return f"<p>Of {len(indices):,} training images.</p>\n{chart(figure, 300)}"
