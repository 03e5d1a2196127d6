"""Settings and test figures as CSV files, beside the metrics.csv that every run has."""

from collections.abc import Mapping

from ...core.csv_tables import replace_table
from ...runs.file_names import RESULTS_TABLE, SETTINGS_TABLE
from .tracker import Outcome, Start


class CsvTracker:
    """Writes settings.csv and results.csv into the run folder."""

    id = None

    def __init__(self, start: Start) -> None:
        self._folder = start.run.path
        rows = [{"setting": name, "value": value} for name, value in start.flat().items()]
        replace_table(self._folder / SETTINGS_TABLE, "setting", rows)

    def log(self, values: Mapping[str, float], step: int) -> None:
        pass  # the run itself writes them

    def finish(self, outcome: Outcome, step: int) -> None:
        rows = [{"figure": name, "value": value} for name, value in outcome.figures.items()]
        replace_table(self._folder / RESULTS_TABLE, "figure", rows)

    def close(self, completed: bool) -> None:
        pass
