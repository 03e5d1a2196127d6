"""What a tracker is given, and what it does."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...config import Config
from ...runs.folder import RunFolder


class Start(NamedTuple):
    """A run that begins, or goes on from `step` with the `id` that the tracker gave it before."""

    config: Config
    run: RunFolder
    settings: Mapping[str, Any]  # the config as nested dicts, and `data_described`
    id: str | None
    step: int

    def flat(self) -> dict[str, Any]:
        """The settings by their dotted paths; a group that is off is None."""
        return dict(_leaves(self.settings))


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


class Sample(NamedTuple):
    """A test image (H, W) uint8, its true and predicted class, and the probability of the predicted one."""

    image: np.ndarray
    true: str
    predicted: str
    probability: float


class Outcome(NamedTuple):
    """What the test found: `figures` by part and name, as `test/accuracy`, and what is behind them."""

    figures: Mapping[str, float]
    classes: tuple[str, ...]
    confusion: list[list[int]]  # rows are true classes
    samples: Iterable[Sample]


class Tracker(Protocol):
    """A tracker of one run."""

    id: str | None  # kept in the checkpoints, for the run to go on under it

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The entry of an epoch, which ended at `step`."""

    def finish(self, outcome: Outcome, step: int) -> None:
        """What the test found, after the last of the training's steps."""

    def close(self, completed: bool) -> None:
        """The end, whether or not it came to the test."""
