#!/usr/bin/env python
"""The result of throughput.py as charts: the stages with their limits, and the peers at each of their jobs.

python bench/plot.py bench/records/throughput-cpu-2-cores.json docs/images/speed.png --job 112×112
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

STAGE, OURS, PEER, LIMIT = "#4477aa", "#228833", "#bbbbbb", "#ee6677"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--job", "jobs", multiple=True, help="Only this; repeatable.  [default: all]")
def main(record: Path, path: Path, jobs: tuple[str, ...]) -> None:
    """Draws the result file of throughput.py as PNG or SVG."""
    document = json.loads(record.read_text())
    known = dict.fromkeys(job for peer in document["peers"].values() for job in peer["jobs"])
    if unknown := [job for job in jobs if job not in known]:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(known)}.", param_hint="--job")
    draw(document, path, jobs)


def draw(document: dict[str, Any], path: Path, jobs: Collection[str] = ()) -> None:
    """Writes a PNG or SVG of the stages and of `jobs`, or all; images/s on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"stages of training": document["stages"]} if document["stages"] else {}
    for name, peer in document["peers"].items():
        for job, result in peer["jobs"].items():
            if "images_per_second" in result and (not jobs or job in jobs):
                panels.setdefault(job, {})[name] = result
    figure, all_axes = pyplot.subplots(
        len(panels),
        squeeze=False,
        figsize=(10, sum(1.2 + 0.3 * len(bars) for bars in panels.values())),
        height_ratios=[2 + len(bars) for bars in panels.values()],
        layout="constrained",
    )
    for axes, (title, bars) in zip(all_axes[:, 0], panels.items(), strict=True):
        if bars is not document["stages"]:
            bars = dict(sorted(bars.items(), key=lambda item: item[1]["images_per_second"], reverse=True))
        _panel(axes, title, bars)
    config, machine = document["config"], document["machine"]
    figure.suptitle(
        f"images/s; batches of {document['batch_size']}, {document['threads']} threads, "
        f"{machine['gpu'] or machine['cpu']}; stages: {config['model']['model']} at "
        f"{config['data']['image_size']}×{config['data']['image_size']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axes: Any, title: str, bars: dict[str, dict[str, Any]]) -> None:
    """A bar from the lowest to the highest for each entry; stages have a limit."""
    rates = [bar["images_per_second"] for bar in bars.values()]
    spread = [
        [bar["images_per_second"] - bar["low"] for bar in bars.values()],
        [bar["high"] - bar["images_per_second"] for bar in bars.values()],
    ]
    colors = [
        STAGE if "limit" in bar else OURS if name.startswith("emnist-dali") else PEER for name, bar in bars.items()
    ]
    axes.barh(range(len(bars)), rates, xerr=spread, color=colors, ecolor="#333333", height=0.7)
    limits = {row: bar["limit"] for row, bar in enumerate(bars.values()) if "limit" in bar}
    for row, limit in limits.items():
        label = "the machine's limit" if row == 0 else None
        axes.plot([limit] * 2, [row - 0.4, row + 0.4], color=LIMIT, linewidth=2, label=label)
    if "model" in bars:
        bound = bars["model"]["images_per_second"]
        axes.axvline(bound, color=STAGE, linestyle=":", linewidth=1.2, label="upper bound of training")
    if limits:
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    axes.set_yticks(range(len(bars)), [f"{name}   {rate:,.0f}" for name, rate in zip(bars, rates, strict=True)])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 3, 2 * max([*rates, *limits.values()]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")


if __name__ == "__main__":
    main()
