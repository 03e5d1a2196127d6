import unicodedata

import pytest

from emnist_dali.core.text import columns, duration, pad, table

COMBINED = unicodedata.normalize("NFD", "é")


@pytest.mark.parametrize(("text", "taken"), [("", 0), ("a→b", 3), ("漢字", 4), (COMBINED, 1), ("a\u200db", 2)])
def test_columns_are_those_of_a_terminal(text, taken):
    assert columns(text) == taken
    assert columns(pad(text, 6)) == 6


def test_cells_of_any_width_stay_apart_in_their_columns():
    rows = [("class", "images"), ("A" * 40, "1"), ("漢" * 20, "1,000"), (COMBINED * 3, "22")]
    lines = table(rows, right=(1,), indent="  ")
    assert {columns(line) for line in lines} == {2 + 40 + 2 + 6}
    for line, (name, images) in zip(lines, rows, strict=True):
        assert line.startswith(f"  {name} ")
        assert line.endswith(f" {images}")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2.0 min"), (9000, "2.5 h")])
def test_a_duration_has_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_a_line_does_not_end_in_spaces():
    assert table([("a", "bbb"), ("aa", "b")]) == ["a   bbb", "aa  b"]
    assert table([]) == []
