import json
import shutil

import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.listing import list_runs, table
from emnist_dali.runs.schema import to_line


def age(run, seconds: float, accuracy: float | None, time: str) -> None:
    """Other figures in a run's files; without an accuracy it was not tested."""
    epoch, test, _ = RunFolder(run).entries()
    entries = [{**epoch, "seconds": seconds}, *([{**test, "accuracy": accuracy}] if accuracy else [])]
    (run / "metrics.jsonl").write_text("".join(map(to_line, entries)))
    write_json(run / "env.json", {**read_json(run / "env.json"), "time": time})


@pytest.fixture
def runs(trained_group, tmp_path):
    """A fast run, a good one, one that was not tested, a group, and what is no run."""
    folder = tmp_path / "runs"
    for name, *figures in (
        ("fast", 10.0, 0.7, "2026-01-01T10:00:00+00:00"),
        ("good", 20.0, 0.9, "2026-01-03T10:00:00+00:00"),
        ("sweep/trial-0000", 30.0, None, "2026-01-02T10:00:00+00:00"),
    ):
        shutil.copytree(trained_group / "seed-0", folder / name)
        age(folder / name, *figures)
    shutil.copytree(trained_group, folder / "group")
    for name, *figures in (
        ("seed-0", 21.0, 0.6, "2026-01-04T10:00:00+00:00"),
        ("seed-1", 21.0, 0.8, "2026-01-05T10:00:00+00:00"),
    ):
        age(folder / "group" / name, *figures)
    (folder / "pictures").mkdir()
    (folder / "notes.txt").write_text("mine")
    return folder


def names(rows) -> list[str]:
    return ["/".join(row["path"].rsplit("/", 2)[-1:]) for row in rows if not row["group"]]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", ["fast", "good", "group", "trial-0000"]),
        ("accuracy", ["good", "fast", "group", "trial-0000"]),
        ("time", ["fast", "good", "trial-0000", "group"]),
        ("started", ["group", "good", "trial-0000", "fast"]),
    ],
)
def test_rows_are_sorted_and_a_groups_runs_follow_it(sort, expected, runs):
    rows = list_runs(runs, sort)
    assert names(rows) == expected
    place = next(i for i, row in enumerate(rows) if row["kind"] == "seeds")
    assert [row["path"] for row in rows[place + 1 : place + 3]] == [
        f"{runs}/group/seed-0",
        f"{runs}/group/seed-1",
    ]
    assert {row["group"] for row in rows[place + 1 : place + 3]} == {f"{runs}/group"}


def test_a_row_says_what_its_run_has(runs):
    rows = {row["path"]: row for row in list_runs(runs)}
    group, trial = rows[f"{runs}/group"], rows[f"{runs}/sweep/trial-0000"]
    assert (group["test_accuracy"], group["seconds"]) == (pytest.approx(0.7), pytest.approx(42))
    assert group["test_accuracy_sd"] == pytest.approx(0.02**0.5)
    assert (group["recipe"], group["data"], group["unfinished"]) == ("cpu", "small (glyphs)", "")
    assert (trial["test_accuracy"], trial["unfinished"]) == (None, "not tested")
    assert 0 <= trial["validation_accuracy"] <= 1
    (runs / "good" / "env.json").unlink()  # as in a run from the Hub
    assert {**rows[f"{runs}/good"], "started": None} in list_runs(runs)
    (runs / "fast" / "metrics.jsonl").unlink()  # as in its first epoch
    assert next(row["unfinished"] for row in list_runs(runs, "name")) == "0 of 1 epochs"
    assert rows[f"{runs}/good"]["unfinished"] == rows[f"{runs}/good"]["problem"] == ""


def test_what_cannot_be_read_is_a_line(runs):
    (runs / "good" / "config.json").write_text("{")
    (runs / "group" / "seed-1" / "metrics.jsonl").write_bytes(b"\xff\n")
    (runs / "broken").mkdir()
    (runs / "broken" / "group.json").write_text("[]")
    rows = list_runs(runs)
    assert {row["path"] for row in rows if row["problem"]} == {
        f"{runs}/good", f"{runs}/group/seed-1", f"{runs}/broken",
    }  # fmt: skip
    assert next(row for row in rows if row["kind"] == "seeds")["unfinished"] == "1 of 2 seeds"
    lines = table(rows, runs).splitlines()
    assert len(lines) == 1 + len(rows)
    assert f"{runs}/good/config.json could not be read as JSON" in "\n".join(lines[-3:])
    (alone,) = list_runs(runs / "broken")
    assert table([alone], runs) == alone["problem"]  # no header without a row


def test_the_command(runs, tmp_path):
    result = CliRunner().invoke(main, ["runs", str(runs), "--sort", "accuracy", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1]) == list_runs(runs, "accuracy")
    lines = CliRunner().invoke(main, ["runs", str(runs)]).output.splitlines()
    assert lines[0].split() == ["run", "recipe", "data", "test,", "%", "validation,", "%", "time", "started"]
    assert any(line.split()[:5] == ["group", "cpu", "small", "(glyphs)", "70.00"] for line in lines)
    assert CliRunner().invoke(main, ["runs", str(runs / "pictures")]).output == f"{runs}/pictures holds no runs.\n"
    missing = CliRunner().invoke(main, ["runs", str(tmp_path / "none")])
    assert (missing.exit_code, missing.output.count("\n")) == (1, 1)


def test_without_a_folder_there_is_nothing_to_list(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        list_runs(tmp_path / "none")
