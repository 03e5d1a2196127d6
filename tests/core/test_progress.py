import io
import logging
import sys

import pytest

from emnist_dali.core.progress import detail, progress, say

LOGGER = logging.getLogger("emnist_dali")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def level():
    """Sets the level of the project's logger for a test."""
    before = LOGGER.level
    yield LOGGER.setLevel
    LOGGER.setLevel(before)


@pytest.mark.parametrize(
    ("chosen", "printed"),
    [(logging.WARNING, ""), (logging.INFO, "a line\n"), (logging.DEBUG, "a line\na detail\n")],
)
def test_the_level_decides_what_is_printed(chosen, printed, level, capsys):
    level(chosen)
    say("a line")
    detail("a detail")
    assert capsys.readouterr() == (printed, "")


def test_an_application_can_take_the_lines_elsewhere(capsys, monkeypatch):
    taken = io.StringIO()
    monkeypatch.setattr(LOGGER, "handlers", [logging.StreamHandler(taken)])
    say("100 % of it")
    assert taken.getvalue() == "100 % of it\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("stderr", "chosen", "shown"),
    [
        (Terminal, logging.INFO, True),
        (Terminal, logging.DEBUG, True),
        (Terminal, logging.WARNING, False),
        (io.StringIO, logging.INFO, False),
    ],
)
def test_a_bar_is_for_terminals_that_are_not_quiet(stderr, chosen, shown, level, monkeypatch):
    level(chosen)
    monkeypatch.setattr(sys, "stderr", stderr())
    with progress(description="working", total=10, unit=" steps") as bar:
        assert bar.disable != shown


def test_a_bar_tells_the_time_that_is_left_without_colours(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(description="working", total=100, initial=40, unit=" steps") as bar:
        bar.update(20)
        told = bar.format_meter(**{**bar.format_dict, "elapsed": 10})
    assert "60.0/100 [00:10<00:20" in told  # 20 steps took 10 s, 40 are left
    assert "\x1b" not in told
