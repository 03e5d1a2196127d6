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

_PERCENT = "Test accuracy", "Unseen fonts", "Best validation accuracy"


def means(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """A table with a row for each set of runs that differ by seed or fold alone; None if there is no such set."""
    sets: dict[str, list[RunData]] = {}
    for run in runs:
        sets.setdefault(_without_seed(run), []).append(run)
    several = [members for members in sets.values() if len(members) > 1]
    figures = [list(map(_figures, members)) for members in several]
    titles = [title for title in _figures(runs[0]) if any(one[title] is not None for each in figures for one in each)]
    rows = [
        (", ".join(run.name for run in members), *(_mean(title, [one[title] for one in each]) for title in titles))
        for members, each in zip(several, figures, strict=True)
    ]
    return {"header": ["", *titles], "rows": rows} if rows else None


def _figures(run: RunData) -> dict[str, float | None]:
    test, unseen = (run.results.get(part, {}) for part in ("test", "unseen"))
    return {
        "Test accuracy": test.get("accuracy"),
        "Unseen fonts": unseen.get("accuracy"),
        "Weighted F1": test.get("weighted_f1"),
        "Macro F1": test.get("macro_f1"),
        "Best validation accuracy": run.best_epoch.get("val_accuracy"),
    }


def _without_seed(run: RunData) -> str:
    config = run.config.override({"training.seed": 0, "data.fold": run.config.data.folds and 1})
    return json.dumps([config.recipe, run.dataset, config.identity()])


def _mean(title: str, values: Sequence[float | None]) -> str:
    """`90.28 ± 0.05 %` or `0.9028 ± 0.0005`; empty where a run has no value."""
    if None in values:
        return ""
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    if title in _PERCENT:
        return f"{100 * mean:.2f} ± {100 * sd:.2f}\N{NO-BREAK SPACE}%"
    return f"{mean:.4f} ± {sd:.4f}"


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
