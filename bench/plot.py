"""The result of throughput.py as a chart: a bar for each stage and each peer, with the limit of each stage."""

from pathlib import Path
from typing import Any

STAGE, OURS, PEER, LIMIT = "#4477aa", "#228833", "#bbbbbb", "#ee6677"


def draw(document: dict[str, Any], path: Path) -> None:
    """Writes a PNG; images/s on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = document["stages"]
    peers = {name: peer for name, peer in document["peers"].items() if "images_per_second" in peer}
    peers = dict(sorted(peers.items(), key=lambda item: item[1]["images_per_second"], reverse=True))
    bars = [*stages.items(), *peers.items()]
    colors = [STAGE] * len(stages) + [OURS if name.startswith("emnist-dali") else PEER for name in peers]
    rates = [entry["images_per_second"] for _, entry in bars]
    spread = [
        [e["images_per_second"] - e["low"] for _, e in bars],
        [e["high"] - e["images_per_second"] for _, e in bars],
    ]

    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.38 * len(bars)), layout="constrained")
    axes.barh(range(len(bars)), rates, xerr=spread, color=colors, ecolor="#333333", height=0.7)
    for row, stage in enumerate(stages.values()):
        axes.plot([stage["limit"]] * 2, [row - 0.4, row + 0.4], color=LIMIT, linewidth=2)
    if "model" in stages:
        bound = stages["model"]["images_per_second"]
        axes.axvline(bound, color=STAGE, linestyle=":", linewidth=1.2, label="upper bound of training")
    axes.plot([], [], color=LIMIT, linewidth=2, label="the machine's limit")
    axes.set_yticks(range(len(bars)), [f"{name}   {rate:,.0f}" for (name, _), rate in zip(bars, rates, strict=True)])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 3, 2 * max([*rates, *(stage["limit"] for stage in stages.values())]))
    axes.set_xlabel("images/s")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    config, machine = document["config"], document["machine"]
    size = config["data"]["image_size"]
    axes.set_title(
        f"{config['model']['model']} at {size}×{size}, batch {document['batch_size']}, "
        f"{document['threads']} threads, {machine['gpu'] or machine['cpu']}",
        fontsize=10,
        loc="left",
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
