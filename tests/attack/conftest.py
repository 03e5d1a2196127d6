from typing import Any

import pytest

from ..faults import processes as forked
from . import tally


@pytest.fixture(autouse=True)
def _tally(monkeypatch: pytest.MonkeyPatch) -> Any:
    before, started = tally.inputs[tally.running()], forked.started
    yield
    if tally.inputs[tally.running()] == before:
        tally.tried()
    tally.processes[tally.running()] += forked.started - started


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not tally.inputs:
        return
    terminalreporter.section(f"attacked with, ATTACK_SEED={tally.SEED}")
    terminalreporter.write_line(f"{'test':88}{'inputs':>9}{'processes':>11}")
    for name in tally.inputs:
        terminalreporter.write_line(f"{name:88}{tally.inputs[name]:9,}{tally.processes[name]:11,}")
    total = f"{sum(tally.inputs.values()):9,}{sum(tally.processes.values()):11,}"
    terminalreporter.write_line(f"{'all':88}{total}")
