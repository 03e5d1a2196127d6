"""MLflow: an SQLite file in the run folder, or the server that MLFLOW_TRACKING_URI names."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ...core.files import write_atomic
from ...runs.file_names import MLFLOW
from .tracker import Outcome, Start

_EXPERIMENT = "emnist-dali"


def _database(folder: Path) -> str:
    """The URI of the SQLite file in `folder`, which is whole or not there: making its tables takes over a second."""
    from mlflow import MlflowClient

    folder.mkdir(exist_ok=True)
    file = folder / "mlflow.db"
    if not file.exists():
        with TemporaryDirectory(ignore_cleanup_errors=True) as place:  # MLflow keeps it open
            new = Path(place, file.name)
            MlflowClient(f"sqlite:///{new}").search_experiments()
            write_atomic(file, new.read_bytes())
    return f"sqlite:///{file}"


class MlflowTracker:
    """A run of the experiment emnist-dali, unless MLFLOW_EXPERIMENT_NAME names another."""

    def __init__(self, start: Start) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it creates
        logging.getLogger("alembic").setLevel(logging.WARNING)
        folder = start.run.path.absolute() / MLFLOW
        local = "MLFLOW_TRACKING_URI" not in os.environ
        self._client = MlflowClient(_database(folder) if local else None)
        self.id = start.id
        self._last = -1
        if self.id:
            self._client.update_run(self.id, status="RUNNING")
            # What was logged after the checkpoint that the run goes on from stays as it is.
            history = self._client.get_metric_history(self.id, "step")
            self._last = max((metric.step for metric in history), default=-1)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        artifacts = (folder / "artifacts").as_uri() if local else None
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        self.id = self._client.create_run(experiment, run_name=start.run.path.name).info.run_id
        self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in start.flat().items()])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if step > self._last:
            now = round(1000 * time.time())
            self._client.log_batch(self.id, [Metric(name, value, now, step) for name, value in values.items()])

    def finish(self, outcome: Outcome, step: int) -> None:
        self._last = -1
        self.log(outcome.figures, step)

    def close(self, completed: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if completed else "KILLED")
