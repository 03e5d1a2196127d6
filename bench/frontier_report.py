"""The frontier's result file as a table and as a plot."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from emnist_dali.evaluation.significance import wilson
from frontier_nets import NETS


def table(document: dict[str, Any]) -> str:
    """Markdown: a row for each run, the shortest budget first, and in each the most accurate first.

    img/s and seconds are those of the file's machine. A run says its precision where that is not the file's.
    """
    lines = [
        "| budget, s | net | parameters | epochs | rate | seed | test accuracy, % | 95 % interval | img/s | s |",
        "|---" * 10 + "|",
    ]
    for run in sorted(document["runs"], key=lambda run: (run["budget"], -run["accuracy"])):
        images = document["test_images"]
        low, high = wilson(round(run["accuracy"] * images), images)
        cells = [
            f"{run['budget']}",
            _label(document, run),
            f"{document['nets'][run['net']]['parameters']:,}",
            epochs_of(run),
            f"{run['lr']:g}",
            f"{run['seed']}",
            f"{100 * run['accuracy']:.2f}",
            f"{100 * low:.2f}–{100 * high:.2f}",
            f"{document['nets'][run['net']]['images_per_second']:,.0f}",
            f"{seconds(document, run):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _label(document: dict[str, Any], run: dict[str, Any]) -> str:
    amp, usual = run["config"]["run"]["amp"], document["config"]["run"]["amp"]
    return NETS[run["net"]].label + ("" if amp == usual else ", in bfloat16" if amp == "bf16" else ", in float32")


def epochs_of(run: dict[str, Any]) -> str:
    return f"{run['epochs'] * run['fraction']:.2f}" if run["fraction"] < 1 else str(run["epochs"])


def seconds(document: dict[str, Any], run: dict[str, Any]) -> float:
    """What a run's images take at the net's img/s on the file's machine, where other work may have slowed the run."""
    return run["images"] / document["nets"][run["net"]]["images_per_second"]


def draw(document: dict[str, Any], path: Path) -> None:
    """Writes an SVG: accuracy over seconds of training, and that of each net's longest budget over its parameters.

    Points are means over the seeds. The axis is that of the error's logarithm, so that the best nets are apart.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_time, by_size) = pyplot.subplots(1, 2, figsize=(13, 5.5), sharey=True, layout="constrained")
    colors = dict(zip(NETS, pyplot.get_cmap("tab20").colors, strict=False))
    for name, points in _points(document):
        ours = name.startswith("emnist_fast")
        style = {"color": colors[name], "marker": "o" if ours else "s", "linewidth": 2.5 if ours else 1}
        times, errors = zip(*points, strict=True)
        by_time.plot(times, errors, label=NETS[name].label, **style)
        by_size.plot(document["nets"][name]["parameters"], errors[-1], **style)
    by_time.set_xlabel("seconds of training")
    by_size.set_xlabel("parameters")
    by_time.set_ylabel("test accuracy, %")
    for axes in (by_time, by_size):
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    budgets = sorted({run["budget"] for run in document["runs"]})
    by_time.set_xticks(budgets, map(str, budgets))
    by_time.set_xticks([], minor=True)
    by_time.set_yscale("log")
    by_time.invert_yaxis()
    by_time.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7, 9)))
    by_time.yaxis.set_major_formatter(lambda error, _: f"{100 * (1 - error):.3g}")
    by_time.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    # Drawn again from the same figures, the file is the same.
    with pyplot.rc_context({"svg.hashsalt": "frontier"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _points(document: dict[str, Any]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Each net's mean (seconds, test error) at each budget, the shortest first."""
    for name in NETS:
        of_budget: dict[int, list[dict[str, Any]]] = {}
        for run in sorted(document["runs"], key=lambda run: run["budget"]):
            if run["net"] == name:
                of_budget.setdefault(run["budget"], []).append(run)
        if of_budget:
            yield (
                name,
                [
                    (mean(seconds(document, run) for run in runs), 1 - mean(run["accuracy"] for run in runs))
                    for runs in of_budget.values()
                ],
            )
