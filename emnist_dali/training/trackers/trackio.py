"""Trackio: a database in its own folder, which `trackio show` reads; TRACKIO_DIR names another."""

import io
import os
import uuid
from collections.abc import Mapping
from contextlib import redirect_stdout

from .tracker import Outcome, Start

_PROJECT = "emnist-dali"


class TrackioTracker:
    """A run of the project emnist-dali, unless TRACKIO_PROJECT names another."""

    def __init__(self, start: Start) -> None:
        import trackio

        self._trackio = trackio
        with redirect_stdout(io.StringIO()):  # it advertises its dashboard
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
                name=start.id or f"{start.run.path.name}-{uuid.uuid4().hex[:8]}",  # its runs are found by their names
                group=start.config.run.wandb_group,
                config=dict(start.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.id = self._run.name

    def log(self, values: Mapping[str, float], step: int) -> None:
        # Each row has its step; as a value of a row Trackio would rename it.
        self._run.log({name: value for name, value in values.items() if name != "step"}, step=step)

    def finish(self, outcome: Outcome, step: int) -> None:
        self.log(outcome.figures, step)

    def close(self, completed: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()
