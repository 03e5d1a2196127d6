"""Rates that are measured turn about, and what may be said of them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from statistics import median
from time import perf_counter, sleep

import torch

REPETITIONS = 5
# Where two rates are compared to a percent: on 2 shared cores single pairs scatter by 6 points.
PAIRS = 15


@dataclass(frozen=True)
class Rate:
    """Images a second, one value a repetition."""

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
    contestants: dict[str, Callable[[], float]], repetitions: int = REPETITIONS, settle: float = 0.0
) -> dict[str, Rate]:
    """Each contestant measures its own rate; A B A B …, so that what slows the machine for a while meets all.

    After a turn `settle` seconds pass, in which a contestant fills its queues again and not in another's turn.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, measure in contestants.items():
            values[name].append(measure())
            sleep(settle)
    return {name: Rate(tuple(measured)) for name, measured in values.items()}


def rate(work: Callable[[], int], seconds: float, device: torch.device | str = "cpu") -> float:
    """Images a second of `work`, which does some and returns how many; warmed up for a quarter of the time."""

    def spend(budget: float) -> float:
        images, started = 0, perf_counter()
        while True:
            images += work()
            if perf_counter() - started >= budget:
                break
        synchronize(device)
        return images / (perf_counter() - started)

    spend(seconds / 4)
    return spend(seconds)


def synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_interval(values: tuple[float, ...], confidence: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with `confidence` or more; no distribution is
    assumed. All values where they are too few for that."""
    ordered, n = sorted(values), len(values)
    for k in range(n // 2, 0, -1):  # from the k-th smallest to the k-th largest
        outside = 2 * sum(comb(n, i) for i in range(k)) / 2**n
        if 1 - outside >= confidence:
            return ordered[k - 1], ordered[n - k]
    return ordered[0], ordered[-1]
