"""What a tested run got right and wrong, as sections of its report."""

import html
import json

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ..evaluation.metrics import CALIBRATION_BINS, confusions
from ..evaluation.significance import wilson
from .html import chart, gallery, png, table
from .run_data import Results

CONFUSIONS, EXAMPLES = 15, 5
MISTAKES = 48
# Tells I from l and O from 0.
CHARACTERS = {"family": "ui-monospace, monospace"}
LEGEND = {"orientation": "h", "y": 1, "yanchor": "bottom"}
CLASS_AXIS = {"type": "category", "tickfont": CHARACTERS, "showgrid": False}

# A radio button's value is an order of the classes. Plotly's own `categoryarray` would leave a heat map's customdata
# where they were.
SCRIPT = """<script>
document.addEventListener("change", event => {
  const order = JSON.parse(event.target.value)
  const plot = event.target.closest(".ordered").querySelector(".js-plotly-plot")
  plot.unordered ??= plot.data.map(trace => ({...trace}))
  const ordered = of => order.map(i => Array.isArray(of[i]) ? order.map(j => of[i][j]) : of[i])
  const update = {}
  for (const name of ["x", "y", "z", "customdata"])
    if (name in plot.data[0]) update[name] = plot.unordered.map(trace => ordered(trace[name]))
  Plotly.restyle(plot, update)
})
</script>
"""


def sections(run: Results) -> str:
    """All of them as HTML; the page needs `SCRIPT`."""
    parts = (_more_figures, _confusion_matrix, _most_confused, _mistakes, _classes, _calibration)
    return "".join(part(run) for part in parts)


def percent(share: float) -> str:
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def _more_figures(run: Results) -> str:
    names = {
        "top2": "in the first 2",
        "top3": "in the first 3",
        "balanced_accuracy": "mean of the classes",
        "case_merged": "with C/c, O/o and the like as one",
        "shape_merged": "and 0/O, 1/I/L",
        "calibration_error": "calibration error",
    }
    rows = [(title, *(percent(of[name]) for of in run.results.values())) for name, title in names.items()]
    return f"<details><summary>More figures</summary>\n{table(('', *run.results), rows)}</details>\n"


def _ordered(body: str, orders: dict[str, np.ndarray]) -> str:
    """A chart of the classes with a choice of their order, that of the labels at first; its data must be lists."""
    choices = "\n".join(
        f'<label><input type="radio" name="order" value="{json.dumps(order.tolist())}"'
        f"{'' if i else ' checked'}> {title}</label>"
        for i, (title, order) in enumerate(orders.items())
    )
    return f'<form class="ordered" autocomplete="off">Sorted by {choices}\n{body}</form>\n'


def counts_and_shares(run: Results) -> tuple[np.ndarray, np.ndarray]:
    """The confusion matrix of the test, rows are true, and the same as shares of its rows."""
    counts = np.array(run.results["test"]["confusion"], np.int32)
    return counts, counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _confusion_matrix(run: Results) -> str:
    from plotly.graph_objects import Figure, Heatmap

    counts, shares = counts_and_shares(run)
    labels, diagonal = run.labels, np.eye(len(counts), dtype=bool)
    blue, orange, red = "rgba(59,130,246,{})", "rgba(249,115,22,{})", "rgba(220,38,38,{})"
    # A confusion of 1 % is to be seen beside one of 50 %.
    errors = [(0, orange.format(0.1)), (0.01, orange.format(0.35)), (0.1, orange.format(1)), (0.5, red.format(1))]
    figure = Figure()
    for cells, scale in (
        (diagonal, [(0, blue.format(0.1)), (1, blue.format(1))]),
        (~diagonal, [*errors, (1, red.format(1))]),
    ):
        there = cells & (counts > 0)
        figure.add_trace(
            Heatmap(
                x=labels, y=labels, z=_where(there, shares.round(5)), customdata=_where(there, counts),
                zmin=0, zmax=1, colorscale=scale, showscale=False, hoverongaps=False,
                xgap=len(labels) <= 64, ygap=len(labels) <= 64,
                hovertemplate="true %{y}, predicted %{x}<br>%{customdata:,} images, %{z:.2%}<extra></extra>",
            )
        )  # fmt: skip
    axis = {
        **CLASS_AXIS, "constrain": "domain", "mirror": True, "linecolor": "rgba(128,128,128,.5)",
    }  # fmt: skip
    figure.update_layout(
        xaxis={**axis, "title": {"text": "predicted", "standoff": 5}},
        yaxis={**axis, "title": {"text": "true", "standoff": 5}, "autorange": "reversed", "scaleanchor": "x"},
    )
    orders = {
        "class": np.arange(len(labels)),
        "confusion": _confusion_order(shares),
        "accuracy": np.argsort(shares.diagonal(), kind="stable"),
    }
    body = f'<div class="square">{chart(figure, None)}</div>'
    return f"""<h2>Confusion matrix</h2>
<p>A row is a true class, blue the share of it that was read rightly, orange to red the share that was taken for the
column's class. Drag to zoom, double-click to get back; the buttons above the chart do the same.</p>
{_ordered(body, orders)}"""


def _where(there: np.ndarray, values: np.ndarray) -> list[list[float | None]]:
    return np.where(there, values.astype(object), None).tolist()


def _confusion_order(shares: np.ndarray) -> np.ndarray:
    """The classes (n,) such that those that are taken for each other come side by side: hierarchical clustering."""
    if len(shares) < 3:
        return np.arange(len(shares))
    alike = shares + shares.T
    np.fill_diagonal(alike, 0)
    distance = 1 - alike / max(alike.max(), 1e-9)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))


def _most_confused(run: Results) -> str:
    rows, arrow = [], "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}"
    for true, predicted, count, share in confusions(run.results["test"], CONFUSIONS):
        row = [f"{_character(true)}{arrow}{_character(predicted)}", f"{count:,}", percent(share)]
        if run.images:
            of = (run.predictions["labels"] == run.classes.index(true)) & (
                run.predictions["predicted"] == run.classes.index(predicted)
            )
            examples = run.images(_most_confident(run.predictions, of, EXAMPLES))
            shown = "".join(f'<img src="{png(image)}" alt="">' for image in examples)
            row.append(f'<span class="examples">{shown}</span>')
        rows.append(row)
    body = "<h2>Most frequent confusions</h2>\n"
    if not rows:
        return f"{body}<p>No image was read wrongly.</p>\n"
    if not run.images:
        body += f"<p>Images are left out: {html.escape(run.missing)}</p>\n"
    header = ["true → read", "images", "of the class", *(["most confident"] if run.images else [])]
    return body + table(header, rows) + "\n"


def _character(name: str) -> str:
    return f"<code>{html.escape(name)}</code>"


def _most_confident(predictions: dict[str, np.ndarray], of: np.ndarray, most: int) -> np.ndarray:
    """Places of at most so many of the images `of` (N,) bool, by falling probability of the predicted class."""
    places = np.flatnonzero(of)
    confidence = predictions["probabilities"][places, predictions["predicted"][places]]
    return places[np.argsort(-confidence, kind="stable")][:most]


def _mistakes(run: Results) -> str:
    if not run.images:
        return ""
    probabilities, predicted, true = (run.predictions[name] for name in ("probabilities", "predicted", "labels"))
    places = _most_confident(run.predictions, predicted != true, MISTAKES)
    if not len(places):
        return ""
    names = [_character(name) for name in run.classes]
    pictures = (
        (
            image,
            f"{names[true[i]]} read as {names[predicted[i]]}<br>"
            f"<small>{percent(probabilities[i, predicted[i]])}</small>",
        )
        for i, image in zip(places, run.images(places), strict=True)
    )
    return f"<h2>Most confident mistakes</h2>\n{gallery(pictures)}\n"


def _classes(run: Results) -> str:
    from plotly.graph_objects import Bar, Figure

    counts, shares = counts_and_shares(run)
    labels, recall = run.labels, shares.diagonal()
    f1 = 2 * counts.diagonal() / np.maximum(counts.sum(0) + counts.sum(1), 1)
    figure = Figure()
    for name, values in (("accuracy (recall)", recall), ("F1", f1)):
        hover = f"%{{x}}: {name} %{{y:.2%}}, %{{customdata:,}} images<extra></extra>"
        images = counts.sum(1).tolist()
        figure.add_trace(Bar(x=labels, y=values.tolist(), name=name, customdata=images, hovertemplate=hover))
    figure.update_layout(
        xaxis=CLASS_AXIS,
        yaxis={"range": [0, 1], "tickformat": ".0%"},
        legend=LEGEND,
    )
    orders = {"class": np.arange(len(labels)), "accuracy": np.argsort(recall, kind="stable")}
    return f"<h2>Accuracy and F1 of each class</h2>\n{_ordered(chart(figure), orders)}"


def _calibration(run: Results) -> str:
    from plotly.graph_objects import Figure, Scatter

    if run.predictions is None:
        return ""
    predicted = run.predictions["predicted"]
    confidence = run.predictions["probabilities"][np.arange(len(predicted)), predicted].astype(np.float32)
    right = predicted == run.predictions["labels"]
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    there = [bins == i for i in np.unique(bins)]
    x, y = [confidence[of].mean() for of in there], [right[of].mean() for of in there]
    intervals = [wilson(int(right[of].sum()), int(of.sum())) for of in there]
    spread = {
        "symmetric": False,
        "array": [high - mean for (_, high), mean in zip(intervals, y, strict=True)],
        "arrayminus": [mean - low for (low, _), mean in zip(intervals, y, strict=True)],
    }
    figure = Figure()
    hover = "probability %{x:.1%}, right %{y:.1%}<br>%{customdata:,} images<extra></extra>"
    images = [int(of.sum()) for of in there]
    figure.add_trace(Scatter(x=x, y=y, error_y=spread, customdata=images, mode="markers", hovertemplate=hover))
    diagonal = {"dash": "dot", "color": "#888"}
    figure.add_trace(Scatter(x=[0, 1], y=[0, 1], mode="lines", line=diagonal, hoverinfo="skip"))
    axis = {"tickformat": ".0%", "range": [-0.02, 1.02], "constrain": "domain"}
    figure.update_layout(
        showlegend=False,
        xaxis={**axis, "title": {"text": "probability of the answer", "standoff": 5}},
        yaxis={**axis, "title": {"text": "share that is right", "standoff": 5}, "scaleanchor": "x"},
    )
    error = percent(run.results["test"]["calibration_error"])
    return f"""<h2>Calibration</h2>
<p>Expected calibration error: {error} ({CALIBRATION_BINS} bins; bars are 95 % intervals). Above the line the model is
more often right than it claims, below it less often.</p>
<div class="square small">{chart(figure, None)}</div>
"""
