"""The HTML page about a sweep."""

import warnings
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from .charts import COLOURS, GREY, Axis, Series, XYChart, share, xy_chart
from .html import percent, render

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_ACCURACY = "validation accuracy"


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
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    settings = {row.number: row.settings for row in rows}
    several = len(complete) > 1
    return render(
        "sweep.html",
        title=f"Sweep {study.study_name}",
        rows=rows,
        trials=trials,
        history=_history(complete, settings),
        settings=[_setting(complete, name, settings) for name in _varied(complete)] if several else [],
        importance=_importance(study) if several else {},
    )


def _history(trials: Sequence["FrozenTrial"], settings: dict[int, str]) -> XYChart:
    numbers, values = [trial.number for trial in trials], [trial.value for trial in trials]
    best = Series(name="best so far", x=numbers, y=list(accumulate(values, max)), dots=False, colour=GREY)
    series = [best, _points(trials, numbers, settings)]
    return xy_chart(series, Axis(title="trial", whole=True), Axis(title=_ACCURACY, format=share))


def _points(trials: Sequence["FrozenTrial"], x: Sequence[float], settings: dict[int, str]) -> Series:
    tips = [f"trial {trial.number}: {percent(trial.value)}\n{settings[trial.number]}" for trial in trials]
    y = [trial.value for trial in trials]
    return Series(name="trials", x=x, y=y, line=False, colour=COLOURS[0], tips=tips)


def _varied(trials: Sequence["FrozenTrial"]) -> list[str]:
    """The settings that not all of `trials` have the same value of."""
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    return [name for name in names if len({trial.params.get(name) for trial in trials}) > 1]


def _setting(trials: Sequence["FrozenTrial"], name: str, settings: dict[int, str]) -> XYChart:
    """The accuracy by the value of one setting; of a setting without order each value has its place."""
    trials = [trial for trial in trials if name in trial.params]
    values = [trial.params[name] for trial in trials]
    if all(isinstance(value, int | float) for value in values):
        log = all(value > 0 for value in values) and getattr(trials[0].distributions[name], "log", False)
        axis = Axis(log=log)
    else:
        kinds = sorted(set(map(str, values)))
        values = [kinds.index(str(value)) for value in values]
        axis = Axis(low=-0.5, high=len(kinds) - 0.5, whole=True, format=lambda at: kinds[round(at)])
    return xy_chart([_points(trials, values, settings)], axis, Axis(format=share), name)


def _importance(study: "Study") -> dict[str, float]:
    """Setting → its share of the importance."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page says that few trials tell little
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
