"""The page and the bounds; tests/rehearsal/ tests what is on it."""

from typing import Any

import pytest

import rehearsal

ROW: dict[str, Any] = {
    "recipe": "fast", "split": "balanced", "optimizer": "muon", "compile": "graph", "batch_size": 512,
    "accumulation": 2, "kernels": 9, "captured": 160, "phases": {"average": 9}, "copies": [], "waits": [],
    "breaks": 0, "recompiled": 0, "peak": 2**30, "flops": 1024 * 989e9, "bytes": 1024 * 3.35e9, "host_seconds": 0.001,
}  # fmt: skip


@pytest.mark.parametrize(
    ("slower", "expected"), [({}, 1000), ({"flops": 1024 * 1978e9}, 500), ({"bytes": 1024 * 6.7e9}, 500)]
)
def test_the_slower_of_arithmetic_and_memory_is_the_bound(slower: dict[str, float], expected: float) -> None:
    assert rehearsal.bound({**ROW, **slower}, "H100") == pytest.approx(expected)


def test_the_page_has_a_row_for_each_case_and_says_that_no_gpu_was_used() -> None:
    machine = {"command": "x", "cpus": 2, "cpu": "y", "packages": {"torch": "2", "timm": "1"}}
    page = rehearsal.page({"machine": machine, "rows": [{**ROW, "bounds": {"H100": 1000.0, "H200": 1000.0}}] * 3})
    assert page.count("| fast | muon | graph | 160 + 9 | 0, 0 | 0, 0 | 1.00 |") == 3
    assert "No GPU was used" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {13, 3}


def test_uncompiled_cases_come_first_because_their_operations_are_counted() -> None:
    how = [case["settings"]["compile"] for group in rehearsal.groups() for case in group]
    assert how == sorted(how, key=("off", "graph", "on").index)
