"""What runs and groups a folder holds, how good they are, and what is unfinished."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from ..config import Config
from ..core import text
from ..core.errors import UserError
from ..core.files import printable
from .file_names import ENVIRONMENT, is_run
from .folder import RunFolder
from .group import is_group, read_group

Row = dict[str, Any]
Sort = Literal["started", "name", "accuracy", "time", "recipe", "data"]
_COLUMN_OF = {"started": "started", "name": "path", "time": "seconds", "recipe": "recipe", "data": "data"}
_NOTHING: Row = {
    "group": None, "kind": "run", "recipe": None, "data": None, "test_accuracy": None, "test_accuracy_sd": None,
    "validation_accuracy": None, "seconds": None, "started": None, "unfinished": "", "problem": "",
}  # fmt: skip


def list_runs(folder: Path, sort: Sort = "started") -> list[Row]:
    """A row for each run and group in `folder` and in the folders there; after a group's come those of its runs.

    A row has `path`, `group` (that of a run in one), `kind` (run, seeds or folds), `recipe`, `data`, `test_accuracy`
    and `validation_accuracy` (the best epoch's; of a group their means, and `test_accuracy_sd`), `seconds` of
    training, `started`, and phrases on what is `unfinished` and what `problem` there is. Accuracies are sorted from
    the best, times from the shortest, starts from the latest.

    Raises UserError if there is no such folder; what cannot be read is a row with a `problem`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds runs.")
    found = list(_found(folder, below=2))
    known = [rows for rows in found if _value(rows[0], sort) is not None]
    known.sort(key=lambda rows: _value(rows[0], sort), reverse=sort in ("accuracy", "started"))
    return [row for rows in (*known, *(rows for rows in found if rows not in known)) for row in rows]


def _value(row: Row, sort: Sort) -> Any:
    """What a row is sorted by; None where that is not known."""
    if sort != "accuracy":
        return row[_COLUMN_OF[sort]]
    tested = row["test_accuracy"] is not None
    accuracy = row["test_accuracy"] if tested else row["validation_accuracy"]
    return None if accuracy is None else (tested, accuracy)


def _found(folder: Path, below: int) -> Iterator[list[Row]]:
    """The rows of each run and group, by name; other folders are searched as far as `below` allows."""
    try:
        if is_group(folder):
            yield _group(folder)
        elif is_run(folder):
            yield [_run(folder)]
        elif below:
            for path in sorted(folder.iterdir()):
                if path.is_dir() and not path.name.startswith("."):
                    yield from _found(path, below - 1)
    except (UserError, OSError) as error:
        problem = str(error) if isinstance(error, UserError) else f"{folder} cannot be read ({error.strerror})."
        yield [{"path": str(folder), **_NOTHING, "problem": problem}]


def _group(folder: Path) -> list[Row]:
    group = read_group(folder)
    members = [{**row, "group": str(folder)} for path in group.begun for (row,) in _found(path, below=0)]
    tests = [row["test_accuracy"] for row in members if row["test_accuracy"] is not None]
    validations = [row["validation_accuracy"] for row in members if row["validation_accuracy"] is not None]
    row = {
        "path": str(folder),
        **_NOTHING,
        **_settings(group.config),
        "kind": group.kind,
        "test_accuracy": fmean(tests) if tests else None,
        "test_accuracy_sd": stdev(tests) if len(tests) > 1 else None,
        "validation_accuracy": fmean(validations) if validations else None,
        "seconds": sum(row["seconds"] or 0.0 for row in members),
        "started": min((row["started"] for row in members if row["started"]), default=None),
        "unfinished": "" if len(tests) == group.number else f"{len(tests)} of {group.number} {group.kind}",
    }
    return [row, *members]


def _run(folder: Path) -> Row:
    run = RunFolder(folder)
    config, entries = run.config(), run.entries()
    epochs = [entry for entry in entries if entry["kind"] == "epoch"]
    validations = [entry["val_accuracy"] for entry in epochs if "val_accuracy" in entry]
    test = next((entry["accuracy"] for entry in entries if entry["kind"] == "test"), None)
    done = epochs[-1]["epochs_done"] if epochs else 0
    trained = done >= config.training.epochs or (
        config.training.steps is not None and bool(epochs) and epochs[-1]["step"] >= config.training.steps
    )
    missing = "not tested" if trained else f"{done} of {config.training.epochs} epochs"
    return {
        "path": str(folder),
        **_NOTHING,
        **_settings(config),
        "test_accuracy": test,
        "validation_accuracy": max(validations, default=None),
        "seconds": sum(entry["seconds"] for entry in epochs),
        "started": run.environment()["time"] if (folder / ENVIRONMENT).exists() else None,  # a pushed run has none
        "unfinished": missing if test is None else "",
    }


def _settings(config: Config) -> Row:
    source = config.data.source
    data = f"{config.data.split} ({Path(source).name})" if source else config.data.split
    return {"recipe": config.recipe, "data": data}


def table(rows: Sequence[Row], folder: Path) -> str:
    """The rows of `list_runs` of `folder` as lines of text, problems last."""
    if not rows:
        return f"{printable(str(folder))} holds no runs."
    problems = [printable(row["problem"]) for row in rows if row["problem"]]
    if len(problems) == len(rows):
        return "\n".join(problems)
    lines = [("run", "recipe", "data", "test, %", "validation, %", "time", "started", "")]
    for row in rows:
        if row["problem"]:
            continue
        path = Path(row["path"])
        name = f"  {path.name}" if row["group"] else _below(path, folder)
        lines.append(
            (
                printable(name),
                row["recipe"] or "",
                printable(row["data"] or ""),
                _percent(row["test_accuracy"], row["test_accuracy_sd"]),
                _percent(row["validation_accuracy"], None),
                "" if row["seconds"] is None else text.duration(row["seconds"]),
                (row["started"] or "")[:16].replace("T", " "),
                row["unfinished"],
            )
        )
    return "\n".join([*text.table(lines, right=(3, 4, 5)), *problems])


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path != folder else str(path)


def _percent(share: float | None, sd: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.2f}" + (f" ± {100 * sd:.2f}" if sd is not None else "")
