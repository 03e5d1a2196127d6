"""Rates measured in interleaved repetitions, and the interval of their median."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median
from time import perf_counter

import torch
from scipy.stats import quantile_test

REPETITIONS = 5
# For rates compared to a percent: on 2 shared cores single pairs scatter by 6 points.
PAIRS = 15


@dataclass(frozen=True)
class Rate:
    """Images/s of each repetition."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    def to_dict(self) -> dict[str, float | list[float]]:
        return {
            "images_per_second": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "values": list(self.values),
        }


def measure_interleaved(
    contestants: dict[str, Callable[[], float]], repetitions: int = REPETITIONS
) -> dict[str, Rate]:
    """Calls the contestants in the order A B A B …; each returns its own rate.

    Whatever slows the machine for a while then affects all of them.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, measure in contestants.items():
            values[name].append(measure())
    return {name: Rate(tuple(measured)) for name, measured in values.items()}


def rate(work: Callable[[], int], seconds: float, device: torch.device | str = "cpu") -> float:
    """Units per second of `work`, which returns how many it did (images, bytes or operations).

    Warms up for a quarter of `seconds` first.
    """

    def run(budget: float) -> float:
        units, started = 0, perf_counter()
        while True:
            units += work()
            if perf_counter() - started >= budget:
                break
        synchronize(device)
        return units / (perf_counter() - started)

    run(seconds / 4)
    return run(seconds)


def synchronize(device: torch.device | str) -> None:
    """Waits for a CUDA device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median, from order statistics; the whole range if there are too few values (< 6)."""
    interval = quantile_test(values).confidence_interval(confidence)
    low, high = float(interval.low), float(interval.high)
    return min(values) if isnan(low) else low, max(values) if isnan(high) else high
