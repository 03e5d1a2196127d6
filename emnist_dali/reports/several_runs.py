"""What a report says of several runs together: means over seeds or folds, and which differ by more than chance."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import printable
from ..evaluation.significance import compare, method, verdict
from .run_data import RunData

_METRICS = {
    "Test accuracy": ("test", "accuracy"),
    "Unseen fonts": ("unseen", "accuracy"),
    "Weighted F1": ("test", "weighted_f1"),
    "Macro F1": ("test", "macro_f1"),
}


def means(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """A table with a row for each set of runs that differ by seed or fold alone; None if there is no such set."""
    sets: dict[str, list[RunData]] = {}
    for run in runs:
        sets.setdefault(_without_seed(run), []).append(run)
    several = [members for members in sets.values() if len(members) > 1]
    columns = {
        **{title: [_mean(_results(runs, *where)) for runs in several] for title, where in _METRICS.items()},
        "Best validation accuracy": [_mean([run.best_epoch.get("val_accuracy") for run in runs]) for runs in several],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    rows = zip([", ".join(run.name for run in runs) for runs in several], *columns.values(), strict=True)
    return {"header": ["", *columns], "rows": list(rows)} if several else None


def _without_seed(run: RunData) -> str:
    config = run.config.override({"training.seed": 0, "data.fold": run.config.data.folds and 1})
    return json.dumps([config.recipe, run.dataset, config.identity()])


def _results(runs: Sequence[RunData], part: str, metric: str) -> list[float | None]:
    return [run.results.get(part, {}).get(metric) for run in runs]


def _mean(values: Sequence[float | None]) -> str:
    """`90.28 ± 0.05 %`; empty where a run has no value."""
    if None in values:
        return ""
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}\N{NO-BREAK SPACE}%"


def differences(runs: Sequence[Path]) -> dict[str, Any] | None:
    """Rows on each pair of runs or groups, or the `problem` why they are not compared; None for a single one."""
    if len(runs) < 2:
        return None
    try:
        result = compare(*runs)
    except UserError as error:
        return {"problem": printable(str(error))}
    rows = []
    for pair in result["pairs"]:
        low, high = (100 * end for end in pair["difference_interval"])
        rows.append(
            (
                f"{printable(pair['second'])} − {printable(pair['first'])}",
                f"{100 * pair['difference']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{pair['p']:.2g}",
                f"{pair['holm_p']:.2g}",
                verdict(pair),
            )
        )
    return {"problem": "", "method": method(result), "rows": rows}
