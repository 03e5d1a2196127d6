import numpy as np
import pytest

from emnist_dali.reports.charts import Axis, Series, bar_chart, matrix_chart, number, share, xy_chart


def places(ticks):
    return [place for place, _ in ticks]


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        ([0.2, 0.7], Axis()),
        ([3.0], Axis()),
        ([0.0, 0.0], Axis(format=share)),
        ([-1e-9, 1e9], Axis()),
        ([1e-6, 40], Axis(log=True)),
        ([0.3], Axis(log=True)),
        ([1, 8], Axis(whole=True)),
        ([0.5], Axis(low=0, high=1)),
    ],
)
def test_points_and_ticks_lie_on_the_chart_in_order(values, axis):
    x = list(range(len(values)))
    chart = xy_chart([Series(name="a", x=x, y=values)], Axis(), axis)
    heights = [y for _, y in chart.series[0]["places"]]
    assert all(0 <= height <= 100 for height in heights)
    assert heights == sorted(heights, reverse=True)  # from the top
    assert 1 <= len(chart.y_ticks) <= 12
    assert places(chart.y_ticks) == sorted(places(chart.y_ticks), reverse=True)
    assert -1e-6 <= min(places(chart.y_ticks)) <= max(places(chart.y_ticks)) <= 100 + 1e-6
    labels = [label for _, label in chart.y_ticks]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.00012, "0.00012"),
        (0.25, "0.25"),
        (1234.5, "1,234"),
        (9999.9, "10,000"),
        (12_500, "12,500"),
        (-99_999, "−99,999"),
        (303_250, "303.2k"),
        (-2e6, "−2,000k"),
    ],
)
def test_numbers_are_written_out(value, told):
    assert number(value) == told


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.9996, 1.0], [0.001, 0.9993]])
def test_axes_of_shares_end_at_0_and_1(values):
    chart = xy_chart([Series(name="a", x=[1, 2][: len(values)], y=values)], Axis(), Axis(format=share))
    ticks = [float(label[:-2]) for _, label in chart.y_ticks]
    assert 0 <= min(ticks) < max(ticks) <= 100
    assert all(0 <= y <= 100 for _, y in chart.series[0]["places"])


def test_ticks_of_whole_numbers_are_whole():
    chart = xy_chart([Series(name="a", x=[1, 2, 3], y=[1, 2, 3])], Axis(whole=True), Axis())
    assert [label for _, label in chart.x_ticks] == ["1", "2", "3"]


def test_strips_cover_the_chart_and_tell_what_is_at_each_x():
    runs = [Series(name="a", x=[1, 2, 4], y=[0.1, 0.2, 0.4]), Series(name="b", x=[2, 3], y=[0.5, 0.6])]
    strips = xy_chart(runs, Axis(title="epoch"), Axis(), value="{:.1f}".format).strips
    assert [tip for *_, tip in strips] == [
        "epoch 1\na: 0.1",
        "epoch 2\na: 0.2\nb: 0.5",
        "epoch 3\nb: 0.6",
        "epoch 4\na: 0.4",
    ]
    ends = np.cumsum([width for _, width, _ in strips])
    assert [left for left, *_ in strips] == pytest.approx([0, *ends[:-1]], abs=0.05)
    assert ends[-1] == pytest.approx(100, abs=0.05)


def test_bars_are_as_high_as_their_values():
    chart = bar_chart(["a", "b"], {"one": [1, 0.25], "two": [0, 0.5]}, ["", ""], Axis(high=1))
    assert chart.heights == [[100, 25], [0, 50]]
    assert chart.legend == [("one", chart.colours[0]), ("two", chart.colours[1])]


def test_cells_are_the_counts_and_a_rare_confusion_can_be_seen():
    counts = np.array([[99, 1, 0], [0, 0, 0], [2, 0, 8]])
    chart = matrix_chart(["a", "b", "漢字"], counts)
    assert {(row, column): images for column, row, _, images in chart.cells} == {
        (0, 0): 99, (0, 1): 1, (2, 0): 2, (2, 2): 8,
    }  # fmt: skip
    opacity = {(row, column): int(colour[-2:], 16) for column, row, colour, _ in chart.cells}
    assert opacity[0, 1] > 0.3 * 255
    assert opacity[0, 0] > opacity[2, 2]
    assert chart.upright == 4  # columns of the widest name
