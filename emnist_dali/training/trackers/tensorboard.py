"""TensorBoard: event files in the run folder, which need no network."""

import json
from collections.abc import Mapping

from ...runs.file_names import TENSORBOARD
from .tracker import Outcome, Start


class TensorboardTracker:
    """Scalars by their names in metrics.jsonl and `test/…`, and the settings as text."""

    id = None

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops what was logged after the checkpoint that a run goes on from.
        purge = start.step + 1 if start.step else None
        self._writer = SummaryWriter(start.run.path / TENSORBOARD, purge_step=purge)
        text = json.dumps(start.settings, indent=1, ensure_ascii=False)
        self._writer.add_text("settings", f"```\n{text}\n```", start.step)
        self._writer.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, outcome: Outcome, step: int) -> None:
        self.log(outcome.figures, step)

    def close(self, completed: bool) -> None:
        self._writer.close()
