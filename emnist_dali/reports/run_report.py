"""One HTML page on a run, or on several side by side."""

import html
import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import check_output, printable, write_output
from ..evaluation.inference import TRIAL_IMAGES
from ..evaluation.significance import wilson
from ..runs.folder import REPORT
from .html import chart, need_plotly, page, plain, table
from .run_data import Results, read_results
from .test_sections import CLASS_AXIS, LEGEND, SCRIPT, counts_and_shares, percent, sections

# Of an epoch's record: name, title, format of the axis, format of a point.
_CURVES = (
    ("loss", "Training loss", "~g", ".4f"),
    ("val_accuracy", "Validation accuracy", ".1~%", ".2%"),
    ("val_macro_f1", "Validation, macro F1", "~g", ".4f"),
    ("lr", "Learning rate at the epoch's end", "~g", ".3g"),
    ("images_per_second", "Images a second", "~s", ",.0f"),
    ("data_wait", "Share of time spent waiting for data", ".1~%", ".2%"),
)


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page on `runs` to `out`, or to report.html in the first's folder; returns where.

    It needs nothing but itself. Raises UserError where a folder holds no run or the run has no epoch yet, and where
    the file is there and was not written by this project.
    """
    need_plotly()
    out = out or runs[0] / REPORT
    check_output(out)
    names = [printable(path.resolve().name) for path in runs]
    if len(set(names)) < len(names):
        names = [printable(str(path)) for path in runs]
    read = [read_results(path, name) for path, name in zip(runs, names, strict=True)]
    first, *others = read
    if others:
        title, body = f"{len(read)} runs side by side", _side_by_side(read)
    else:
        title, body = _subject(first), _headline(first)
    body += _curves(read)
    body += f"<h2>{html.escape(first.name)}</h2>\n{_details(first)}" if others else _details(first)
    for run in others:
        body += f"<details><summary><b>{html.escape(run.name)}</b></summary>\n{_details(run)}</details>\n"
    write_output(out, page(title, body + SCRIPT, charts=True).encode())
    return out


def _headline(run: Results) -> str:
    tiles = "".join(
        f"<div>{name}<b>{value}</b><small>{note}</small></div>\n" for name, (value, note) in _figures(run).items()
    )
    return f'<p>Run <b>{html.escape(run.name)}</b>: {_story(run)}</p>\n<div class="tiles">\n{tiles}</div>\n'


def _side_by_side(runs: Sequence[Results]) -> str:
    """Headline figures, and the settings that are not the same in all."""
    figures = [_figures(run) for run in runs]
    names = dict.fromkeys(name for of in figures for name in of)
    rows = [
        [name, *(f"<b>{of[name][0]}</b><br><small>{of[name][1]}</small>" if name in of else "–" for of in figures)]
        for name in names
    ]
    settings = [_settings(run) for run in runs]
    differing = [
        [html.escape(name), *(html.escape(of[name]) for of in settings)]
        for name in settings[0]
        if len({of[name] for of in settings}) > 1
    ]
    header = ["", *(html.escape(run.name) for run in runs)]
    stories = "".join(
        f"<li><b>{html.escape(run.name)}</b>: {html.escape(_subject(run))}; {_story(run)}\n" for run in runs
    )
    body = f"<ul>\n{stories}</ul>\n{table(header, rows)}\n<h2>Settings that differ</h2>\n"
    return body + (table(header, differing) if differing else "<p>None.</p>") + "\n"


def _settings(run: Results) -> dict[str, str]:
    """Every setting but the folder's by its name in the config, and the machine."""
    config = run.config.to_dict()
    flat = {"recipe": config["recipe"], "data": run.data, "machine": _machine(run)}
    for part in ("data", "model", "training", "run"):
        flat |= {f"{part}.{name}": _shown(value) for name, value in config[part].items()}
    return {name: value for name, value in flat.items() if name != "run.out"}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _machine(run: Results) -> str:
    """That on which the run ended."""
    env = (run.env.get("resumed") or [run.env])[-1]
    return env["gpu"] or "a GPU" if run.config.run.device.startswith("cuda") else f"{env['cpu']}, {env['cpus']} CPUs"


def _subject(run: Results) -> str:
    return f"{run.config.model.model} on {run.data}"


def _story(run: Results) -> str:
    """How it was trained, on which machine, how far; HTML."""
    config, size, epochs = run.config, run.config.data.image_size, len(run.epochs)
    told = [
        f"recipe {config.recipe}, images at {size}×{size}, {len(run.classes)} classes.",
        f"{epochs} of {config.training.epochs} epochs on {_machine(run)}.",
    ]
    if run.manifest:
        images, held_out = sum(run.manifest.counts["train"]), config.data.val_fraction
        told.insert(1, f"{images:,} training images, {100 * held_out:g} % of them held out for validation.")
    if config.training.steps:
        told.append(
            f"A trial of {config.training.steps:,} steps: evaluated on at most {TRIAL_IMAGES:,} images of a part."
        )
    if "test" not in run.results:
        last = run.epochs[-1]
        done = last["epoch"] + 1 >= config.training.epochs or last["step"] >= (config.training.steps or np.inf)
        under_way = "" if done else "The run is not at its end. "
        told.append(f"{under_way}It was not tested: the figures are of the validation images.")
    if any(resumed["test_was_read"] for resumed in run.env.get("resumed", ())):
        told.append("It went on after its test images had been read once.")
    return html.escape(" ".join(told))


def _figures(run: Results) -> dict[str, tuple[str, str]]:
    """Name → figure and a note on it."""
    figures = {}
    for part, name in (("test", "Test accuracy"), ("unseen", "Unseen faces")):
        if result := run.results.get(part):
            low, high = wilson(round(result["accuracy"] * result["images"]), result["images"])
            note = f"95 % interval {100 * low:.2f} to {100 * high:.2f}; {result['images']:,} images"
            figures[name] = percent(result["accuracy"]), note
    if test := run.results.get("test"):
        figures["Weighted F1"] = f"{test['weighted_f1']:.4f}", "test"
        figures["Macro F1"] = f"{test['macro_f1']:.4f}", "test"
    best = run.best
    if "val_accuracy" in best:
        note = f"the best, after epoch {best['epoch'] + 1}; macro F1 {best['val_macro_f1']:.4f}"
        figures["Validation accuracy"] = percent(best["val_accuracy"]), note
    seconds = [line["seconds"] for line in run.epochs]
    speed, wait = (
        np.average([line[name] for line in run.epochs], weights=seconds)
        for name in ("images_per_second", "data_wait")
    )
    figures["Images a second"] = f"{speed:,.0f}", f"in training; waiting for data {percent(wait)}"
    figures["Training time"] = _duration(sum(seconds)), f"{run.epochs[-1]['step']:,} steps"
    return figures


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _curves(runs: Sequence[Results]) -> str:
    from plotly.graph_objects import Figure, Scatter

    charts, step = [], ceil(max(run.epochs[-1]["epoch"] + 1 for run in runs) / 8)
    for name, title, ticks, points in _CURVES:
        figure = Figure(
            layout={
                "title": {"text": title, "font": {"size": 14}},
                "yaxis": {"tickformat": ticks, "hoverformat": points},
            }
        )
        for run in runs:
            lines = [line for line in run.epochs if name in line]
            x, y = [line["epoch"] + 1 for line in lines], [line[name] for line in lines]
            figure.add_trace(Scatter(x=x, y=y, name=plain(run.name), mode="lines+markers"))
        figure.update_layout(
            showlegend=len(runs) > 1,
            legend={"orientation": "h", "y": -0.2},
            hovermode="x",
            xaxis={"title": {"text": "epoch", "standoff": 5}, "dtick": step},
        )
        if any(trace.y for trace in figure.data):  # without validation there is nothing to draw
            charts.append(chart(figure, 250))
    return f'<h2>Training</h2>\n<div class="charts">{"".join(charts)}</div>\n'


def _details(run: Results) -> str:
    tested = sections(run) if "test" in run.results else ""
    return _environment(run) + tested + _distribution(run)


def _environment(run: Results) -> str:
    """The command, the versions, the settings; folded."""
    env = dict(run.env)
    command, packages, resumed = env.pop("command"), env.pop("packages"), env.pop("resumed", [])
    machine = [(html.escape(name), html.escape(str(value))) for name, value in {**env, **packages}.items()]
    settings = [(html.escape(name), html.escape(value)) for name, value in _settings(run).items()]
    again = "".join(f"<p>Gone on with after step {of['step']:,}, {html.escape(of['time'])}.</p>\n" for of in resumed)
    return (
        f"<details><summary>Command, versions and settings</summary>\n<pre>{html.escape(command)}</pre>\n{again}"
        f'<div class="charts">{table(("machine", ""), machine)}{table(("setting", ""), settings)}</div></details>\n'
    )


def _distribution(run: Results) -> str:
    from plotly.graph_objects import Bar, Figure

    body = "<h2>Class distribution</h2>\n"
    if run.manifest:
        parts = {name: np.array(counts) for name, counts in run.manifest.counts.items()}
    elif "test" in run.results:
        parts = {"test": counts_and_shares(run)[0].sum(1)}
    else:
        return f"{body}<p>It is left out: {html.escape(run.missing)}</p>\n"
    images = "; ".join(
        f"{name}: {of.sum():,} images, {of.min():,} to {of.max():,} a class" for name, of in parts.items()
    )
    figure = Figure()
    for name, of in parts.items():
        hover = f"%{{x}}: %{{customdata:,}} images, %{{y:.2%}} of {name}<extra></extra>"
        figure.add_trace(Bar(x=run.labels, y=of / of.sum(), name=name, customdata=of, hovertemplate=hover))
    figure.update_layout(xaxis=CLASS_AXIS, yaxis={"tickformat": ".1~%"}, legend=LEGEND)
    left_out = "" if run.manifest else f" The training images are left out: {html.escape(run.missing)}"
    return f"{body}<p>Share of each class in the part. {images}.{left_out}</p>\n{chart(figure)}\n"
