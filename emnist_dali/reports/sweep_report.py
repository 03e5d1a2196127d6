"""The HTML page about a sweep."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .html import render

if TYPE_CHECKING:
    from optuna import Study

_VALUE = "validation accuracy"


class TrialRow(NamedTuple):
    """A trial that counts, as people read it; `seconds` are those of its last process."""

    number: int
    accuracy: str
    state: str
    seconds: str
    settings: str
    folder: str


def sweep_page(study: "Study", rows: Sequence[TrialRow], trials: int) -> bytes:
    """The page about `study`, of whose `trials` those in `rows` are done; `rows` are sorted from the best."""
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import plot_optimization_history, plot_parallel_coordinate, plot_param_importances

    history, settings, importance = plot_optimization_history(study, target_name=_VALUE), None, None
    if sum(row.state == "complete" for row in rows) > 1:
        settings = plot_parallel_coordinate(study, target_name=_VALUE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page says that few trials tell little
            importance = plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target_name=_VALUE)
    for figure in (history, settings, importance):
        if figure:
            figure.update_layout(title=None)
    return render(
        "sweep.html",
        title=f"Sweep {study.study_name}",
        rows=rows,
        trials=trials,
        history=history,
        settings=settings,
        importance=importance,
    )
