"""Charts as data for the macros of charts.html: SVG and HTML that the browser lays out, without a library.

plotly.js has 4.7 MB; its smaller builds, which no Python package ships, have 1 MB and no heat map. Lengths here are
shares of the chart's width or height, so that a chart fits any page while its text keeps its size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log10
from typing import Any

import numpy as np

from ..core.text import columns

# Readable on white and on black.
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#ec4899", "#8b5cf6", "#ca8a04", "#06b6d4", "#ef4444")
GREY = "#888888"
_TICKS = 5  # about as many on an axis of numbers
# Names of classes stand upright below an axis from this many columns on, and the page cuts them to this many.
_UPRIGHT, _LONGEST = 3, 16

Format = Callable[[float], str]
Tick = tuple[float, str]  # a place in percent from the left or the top, and what stands there


def number(value: float) -> str:
    value, unit = (value / 1e3, "k") if abs(value) >= 1e5 else (value, "")
    digits = f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"
    return digits.replace("-", "\N{MINUS SIGN}") + unit


def share(value: float) -> str:
    return f"{100 * value:.4g}\N{NO-BREAK SPACE}%"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Numbers from `low` to `high`, by default those of the data; `whole` ticks are integers."""

    title: str = ""
    format: Format = number
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False

    def over(self, values: Sequence[float]) -> "_Scale":
        """The scale that shows `values`, which are positive if `log`."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        low = min(values) if self.low is None else self.low
        high = max(values) if self.high is None else self.high
        # Margins do not pass what a share can be.
        lowest, highest = (min(low, 0.0), max(high, 1.0)) if self.format is share else (-inf, inf)
        largest = max(abs(low), abs(high))
        if high - low <= 5e-4 * largest:  # ticks would have the same four digits
            margin = 0.05 * largest or 0.5
            low, high = (low / 2, high * 2) if self.log else (low - margin, high + margin)
        few_decades = self.log and high / low < 1000
        locator = (
            LogLocator(subs=(1, 2, 5) if few_decades else (1,))
            if self.log
            else MaxNLocator(_TICKS, integer=self.whole, steps=[1, 2, 2.5, 5, 10])
        )
        ticks = locator.tick_values(low, high)
        if not self.log:  # from tick to tick, but for ends that were asked for
            low = low if self.low is not None or self.whole else min(low, ticks[0])
            high = high if self.high is not None or self.whole else max(high, ticks[-1])
        low, high = max(low, lowest), min(high, highest)
        slack = (high - low) * 1e-9
        return _Scale(low, high, self.log, [tick for tick in ticks if low - slack <= tick <= high + slack])


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        """The place of `value` in percent from the low end."""
        low, high, value = (log10(x) if self.log else x for x in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 2)


@dataclass(frozen=True, kw_only=True)
class Series:
    """`x` and `y` of n points; `intervals` (low, high) of y, and `tips`, are of all points or of none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    line: bool = True
    dots: bool = True
    dashed: bool = False
    colour: str = ""  # by default the next of COLOURS
    intervals: Sequence[tuple[float, float]] = ()
    tips: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class XYChart:
    """What the macro `xy_chart` draws. `strips` are left end, width and tip of what answers to the pointer."""

    title: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[dict[str, Any]]
    strips: list[tuple[float, float, str]]
    legend: list[tuple[str, str]]
    gutter: int


def xy_chart(series: Sequence[Series], x: Axis, y: Axis, title: str = "", value: Format | None = None) -> XYChart:
    """Lines and points. Where no point has a tip, all at an x is told at once, with y as `value` writes it."""
    every_x = sorted({a for one in series for a in one.x})
    across = x.over(every_x)
    up = y.over(
        [b for one in series for b in one.y] + [end for one in series for ends in one.intervals for end in ends]
    )
    drawn = []
    for one, colour in zip(series, _colours(series), strict=True):
        at = [across(a) for a in one.x]
        places = list(zip(at, (round(100 - up(b), 2) for b in one.y), strict=True))
        bars = [(a, 100 - up(low), 100 - up(high)) for a, (low, high) in zip(at, one.intervals, strict=False)]
        drawn.append({"of": one, "colour": colour, "places": places, "bars": bars, "tips": one.tips})
    y_ticks = [(100 - up(tick), y.format(tick)) for tick in up.ticks]
    return XYChart(
        title=title,
        x_title=x.title,
        y_title=y.title,
        x_ticks=[(across(tick), x.format(tick)) for tick in across.ticks],
        y_ticks=y_ticks,
        series=drawn,
        strips=[] if any(one.tips for one in series) else _strips(series, every_x, across, x, value or y.format),
        legend=_legend([(one.name, colour) for one, colour in zip(series, _colours(series), strict=True)]),
        gutter=_longest(label for _, label in y_ticks),
    )


def _colours(series: Sequence[Series]) -> list[str]:
    return [one.colour or COLOURS[i % len(COLOURS)] for i, one in enumerate(series)]


def _legend(names: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """None for a single name, and none for what has no name."""
    named = [(name, colour) for name, colour in names if name]
    return named if len(named) > 1 else []


def _strips(
    series: Sequence[Series], every_x: Sequence[float], across: _Scale, x: Axis, value: Format
) -> list[tuple[float, float, str]]:
    places = [across(a) for a in every_x]
    ends = [0, *((left + right) / 2 for left, right in pairwise(places)), 100]
    by_x = [(one.name, dict(zip(one.x, one.y, strict=True))) for one in series]
    strips = []
    for a, (left, right) in zip(every_x, pairwise(ends), strict=True):
        told = [f"{name}: {value(ys[a])}" if len(series) > 1 else value(ys[a]) for name, ys in by_x if a in ys]
        strips.append((round(left, 2), round(right - left, 2), "\n".join([f"{x.title} {x.format(a)}", *told])))
    return strips


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """What the macro `bar_chart` draws: at each label a bar of each series; `heights` (series, labels) in percent."""

    labels: list[str]
    heights: list[list[float]]
    tips: list[str]
    y_ticks: list[Tick]
    legend: list[tuple[str, str]]
    gutter: int
    upright: int  # characters of the longest label if they stand upright, else 0

    @property
    def colours(self) -> Sequence[str]:
        return COLOURS


def bar_chart(labels: Sequence[str], series: dict[str, Sequence[float]], tips: Sequence[str], y: Axis) -> BarChart:
    """`tips` (labels) are what is told at a label."""
    up = y.over([0, *(value for values in series.values() for value in values)])
    y_ticks = [(100 - up(tick), y.format(tick)) for tick in up.ticks]
    return BarChart(
        labels=list(labels),
        heights=[[up(value) for value in values] for values in series.values()],
        tips=list(tips),
        y_ticks=y_ticks,
        legend=_legend(list(zip(series, COLOURS, strict=False))),
        gutter=_longest(label for _, label in y_ticks),
        upright=_upright(labels),
    )


def _longest(labels: Iterable[str]) -> int:
    """Columns of the longest label."""
    return min(max(map(columns, labels), default=0), _LONGEST)


def _upright(labels: Sequence[str]) -> int:
    longest = _longest(labels)
    return longest if longest >= _UPRIGHT else 0


@dataclass(frozen=True, kw_only=True)
class MatrixChart:
    """What the macro `matrix_chart` draws of a confusion matrix: column, row, colour and images of each cell."""

    labels: list[str]
    images: list[int]  # of each row
    cells: list[tuple[int, int, str, int]]
    gutter: int
    upright: int

    @property
    def side(self) -> float:
        """Of a cell; many have no room for gaps."""
        return 0.94 if len(self.labels) <= 64 else 1


def matrix_chart(labels: Sequence[str], counts: np.ndarray) -> MatrixChart:
    """`counts` (n, n) of images; rows are the true classes."""
    images = counts.sum(1)
    cells = []
    for row, column in np.argwhere(counts).tolist():
        count = int(counts[row, column])
        cells.append((column, row, _cell_colour(count / images[row], row == column), count))
    return MatrixChart(
        labels=list(labels), images=images.tolist(), cells=cells, gutter=_longest(labels), upright=_upright(labels)
    )


def _cell_colour(share: float, right: bool) -> str:
    """#rrggbbaa. A confusion of 1 % must be visible beside one of 50 %."""
    if right:
        return f"#3b82f6{round(255 * (0.1 + 0.9 * share)):02x}"
    opacity = round(255 * np.interp(share, (0, 0.01, 0.1), (0.1, 0.35, 1)))
    rgb = (round(np.interp(share, (0.1, 0.5), ends)) for ends in ((249, 220), (115, 38), (22, 38)))
    return "#" + "".join(f"{value:02x}" for value in (*rgb, opacity))
