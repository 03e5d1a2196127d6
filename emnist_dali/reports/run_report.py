"""One HTML page about a run, or about several side by side."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import check_output, printable, write_output
from ..core.text import duration
from ..evaluation.inference import TRIAL_IMAGES
from ..evaluation.significance import wilson
from ..runs.file_names import REPORT
from ..runs.group import is_group, runs_of
from .charts import Axis, Series, XYChart, bar_chart, number, share, xy_chart
from .html import percent, render
from .run_data import RunData, part_name, read_run_data
from .several_runs import differences, means
from .test_sections import counts_and_shares, robustness_section, sections

# Of an epoch's entry: key, title, format of the axis, format of a point.
_CURVES = (
    ("loss", "Training loss", number, "{:.4f}".format),
    ("val_accuracy", "Validation accuracy", share, percent),
    ("val_macro_f1", "Validation macro F1", number, "{:.4f}".format),
    ("lr", "Learning rate at the end of the epoch", number, "{:.3g}".format),
    ("images_per_second", "Images/s", number, "{:,.0f}".format),
    ("data_wait", "Share of time spent waiting for data", share, percent),
)


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page about `runs` to `out`, by default report.html in the first one's folder; returns its path.

    A group stands for its runs; a run that is named twice, or beside its group, is counted once. Of runs that differ
    by seed or fold alone the page has means ± standard deviations.

    Raises UserError if a folder holds no run, a run has not finished an epoch, or `out` exists and was not written by
    this project.
    """
    out = out or runs[0] / REPORT
    check_output(out)
    runs = _distinct(runs)
    folders = _distinct(folder for path in runs for folder in runs_of(path))
    names = [printable(path.resolve().name) for path in folders]
    if len(set(names)) < len(names):
        names = [printable(str(path)) for path in folders]
    data = [read_run_data(path, name) for path, name in zip(folders, names, strict=True)]
    shown, curves = [_shown(run) for run in data], _curves(data)
    if len(data) == 1:
        page = render("run_report.html", title=_title(data[0]), runs=shown, curves=curves)
    else:
        title = f"{len(data)} runs side by side"
        compared = {**_compared(shown), "means": means(data), "differences": differences(runs)}
        page = render("side_by_side.html", title=title, runs=shown, curves=curves, **compared)
    write_output(out, page)
    return out


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Each folder by the first of its names, and no run beside its group."""
    folders: dict[Path, Path] = {}
    for path in paths:
        folders.setdefault(path.resolve(), path)
    groups = [folder for folder in folders if is_group(folder)]
    inside = {run.resolve() for group in groups for run in runs_of(group)}
    return [path for folder, path in folders.items() if folder not in inside]


def _shown(run: RunData) -> dict[str, Any]:
    """What the pages show of one run."""
    env = run.env or {}
    machine = {**env, **env.get("packages", {})}
    return {
        "name": run.name,
        "subject": _subject(run),
        "story": _story(run),
        "headline": _headline(run),
        "command": env.get("command", ""),
        "resumed": env.get("resumed", []),
        "machine": {key: value for key, value in machine.items() if key not in ("command", "packages", "resumed")},
        "settings": _settings(run),
        "test": sections(run) if "test" in run.results else None,
        "robustness": robustness_section(run.robustness) if run.robustness else None,
        "distribution": _distribution(run),
    }


def _compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Titles of all headline figures, and rows of the settings that differ."""
    rows = [(name, *(run["settings"][name] for run in runs)) for name in runs[0]["settings"]]
    return {
        "titles": list(dict.fromkeys(title for run in runs for title in run["headline"])),
        "differing": [row for row in rows if len(set(row[1:])) > 1],
    }


def _settings(run: RunData) -> dict[str, str]:
    """Every setting but the folder by its name in the config, and the machine."""
    config = run.config.to_dict()
    settings = {"recipe": config["recipe"], "data": run.dataset, "machine": _machine(run)}
    for part in ("data", "model", "training", "run"):
        for name, value in config[part].items():
            settings[f"{part}.{name}"] = value if isinstance(value, str) else json.dumps(value)
    del settings["run.out"]
    return settings


def _machine(run: RunData) -> str:
    """The one that the run ended on."""
    if run.env is None:
        return "a machine that is not known"
    env = (run.env.get("resumed") or [run.env])[-1]
    return env["gpu"] or "a GPU" if run.config.run.device.startswith("cuda") else f"{env['cpu']}, {env['cpus']} CPUs"


def _subject(run: RunData) -> str:
    return f"{run.config.model.model} on {run.dataset}"


def _story(run: RunData) -> str:
    """How the run was trained, on which machine, how far."""
    config, size, epochs = run.config, run.config.data.image_size, len(run.epochs)
    sentences = [f"recipe {config.recipe}, images at {size}×{size}, {len(run.classes)} classes."]
    if run.manifest:
        images, own = sum(run.manifest.counts["train"]), sum(run.manifest.counts.get("validation", ()))
        if config.data.folds:
            validation = f"fold {config.data.fold} of {config.data.folds} held out for validation"
        else:
            held_out = f"{100 * config.data.val_fraction:g} % of them held out for validation"
            validation = f"{own:,} for validation" if own else held_out
        sentences.append(f"{images:,} training images, {validation}.")
    sentences.append(f"{epochs} of {config.training.epochs} epochs on {_machine(run)}.")
    if config.training.steps:
        sentences.append(
            f"A trial of {config.training.steps:,} steps, evaluated on at most {TRIAL_IMAGES:,} images per part."
        )
    if "test" not in run.results:
        last = run.epochs[-1]
        if last["epochs_done"] < config.training.epochs and last["step"] < (config.training.steps or np.inf):
            sentences.append("The run has not finished.")
        sentences.append("It has not been tested: the figures are those of the validation images.")
    if any(resumed["test_was_read"] for resumed in (run.env or {}).get("resumed", ())):
        sentences.append("It was resumed after its test images had been read once.")
    return " ".join(sentences)


def _title(run: RunData) -> str:
    """The run's name and accuracy."""
    if test := run.results.get("test"):
        return f"{run.name}: {percent(test['accuracy'])} test accuracy"
    if "val_accuracy" in run.best_epoch:
        return f"{run.name}: {percent(run.best_epoch['val_accuracy'])} validation accuracy"
    return run.name


def _headline(run: RunData) -> dict[str, tuple[str, str]]:
    """Title → figure and a note on it."""
    headline = {}
    for part, title in (("test", "Test accuracy"), ("unseen", "Unseen fonts")):
        if result := run.results.get(part):
            low, high = wilson(round(result["accuracy"] * result["images"]), result["images"])
            note = f"95 % interval {100 * low:.2f} to {100 * high:.2f}; {result['images']:,} images"
            headline[title] = percent(result["accuracy"]), note
    if test := run.results.get("test"):
        headline["Weighted F1"] = f"{test['weighted_f1']:.4f}", "test"
        headline["Macro F1"] = f"{test['macro_f1']:.4f}", "test"
    best = run.best_epoch
    if "val_accuracy" in best:
        note = f"best, after epoch {best['epochs_done']}; macro F1 {best['val_macro_f1']:.4f}"
        headline["Validation accuracy"] = percent(best["val_accuracy"]), note
    seconds = [entry["seconds"] for entry in run.epochs]
    speed = np.average([entry["images_per_second"] for entry in run.epochs], weights=seconds)
    data_wait = np.average([entry["data_wait"] for entry in run.epochs], weights=seconds)
    headline["Images/s"] = f"{speed:,.0f}", f"in training; data wait {percent(data_wait)}"
    headline["Training time"] = duration(sum(seconds)), f"{run.epochs[-1]['step']:,} steps"
    return headline


def _curves(runs: Sequence[RunData]) -> list[XYChart]:
    curves = []
    for key, title, ticks, value in _CURVES:
        series = []
        for run in runs:
            entries = [entry for entry in run.epochs if key in entry]
            x, y = [entry["epochs_done"] for entry in entries], [entry[key] for entry in entries]
            series.append(Series(name=run.name, x=x, y=y))
        if any(one.y for one in series):  # without validation there is nothing to draw
            curves.append(xy_chart(series, Axis(title="epoch", whole=True), Axis(format=ticks), title, value))
    return curves


def _distribution(run: RunData) -> dict[str, Any]:
    """The share of each class in each part whose counts are known."""
    if run.manifest:
        counts = {part: np.array(numbers) for part, numbers in run.manifest.counts.items()}
    elif "test" in run.results:
        counts = {"test": counts_and_shares(run)[0].sum(1)}
    else:
        counts = {}
    shares = {part_name(part): images / images.sum() for part, images in counts.items()}
    tips = [
        "\n".join(
            [
                name,
                *(
                    f"{part_name(part)}: {images[i]:,} images, {percent(images[i] / images.sum())}"
                    for part, images in counts.items()
                ),
            ]
        )
        for i, name in enumerate(run.classes)
    ]
    return {
        "chart": bar_chart(run.classes, shares, tips, Axis(format=share)) if counts else None,
        "parts": [
            {"name": part_name(part), "images": images.sum(), "fewest": images.min(), "most": images.max()}
            for part, images in counts.items()
        ],
        "data_problem": "" if run.manifest else run.data_problem,
    }
