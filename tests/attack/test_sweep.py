"""Damaged and hostile sweep databases: a sweep on one ends well or in one sentence, and trains in no other folder.

ATTACK_FACTOR=20 tries twenty times as many at random, others each time; a failure's name has its number.
"""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages._rdb.storage import _VersionManager

from emnist_dali.core.errors import UserError
from emnist_dali.tools import sweep, sweep_database

from ..training_runs import quick
from .tally import FACTOR, SEED

NUMBERS = [SEED + i for i in range(10 * FACTOR)]

SECONDS = 60  # in which each sweep ends; it takes a tenth of one
SPACE = ("optimizer", "lr", "mixing")
TRIALS = 5
HUGE = "1" + "0" * 400

# One statement of SQL each; NOT NULL, CHECK and UNIQUE do not hold.
STATEMENTS = [
    *(f"DROP TABLE {table}" for table in (
        "studies", "version_info", "study_directions", "study_user_attributes", "trials", "trial_params",
        "trial_values", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes",
        "trial_heartbeats", "alembic_version",
    )),
    *(f"DELETE FROM {table}" for table in (
        "studies", "version_info", "study_directions", "study_user_attributes", "trials", "trial_params",
        "trial_values", "trial_user_attributes", "trial_heartbeats", "alembic_version",
    )),
    "UPDATE studies SET study_name = NULL",
    "UPDATE studies SET study_id = 7",
    "UPDATE study_directions SET direction = 'MINIMIZE'",
    "UPDATE study_directions SET direction = 'SIDEWAYS'",
    "UPDATE study_directions SET objective = 3",
    "INSERT INTO study_directions (direction, study_id, objective) VALUES ('MAXIMIZE', 1, 1)",
    "UPDATE study_user_attributes SET value_json = 'nonsense'",
    "UPDATE study_user_attributes SET value_json = NULL",
    "UPDATE study_user_attributes SET value_json = '[1, 2]'",
    "UPDATE study_user_attributes SET value_json = '{}'",
    f"UPDATE study_user_attributes SET value_json = '{{\"seed\": {HUGE}, \"recipe\": \"\\u001b[2J\"}}'",
    "UPDATE version_info SET schema_version = 99",
    "UPDATE version_info SET schema_version = 'x', library_version = NULL",
    "UPDATE alembic_version SET version_num = 'v9.9.9.a'",
    "UPDATE alembic_version SET version_num = NULL",
    "UPDATE trials SET state = 'ASLEEP' WHERE number = 1",
    "UPDATE trials SET state = NULL WHERE number = 1",
    *(f"UPDATE trials SET state = '{state}'" for state in ("COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL")),
    "UPDATE trials SET state = 'COMPLETE' WHERE number >= 3",
    "UPDATE trials SET number = NULL WHERE number = 1",
    "UPDATE trials SET number = 0",
    "UPDATE trials SET number = -1 WHERE number = 1",
    f"UPDATE trials SET number = {2**62} WHERE number = 1",
    "UPDATE trials SET number = 'one' WHERE number = 1",
    "UPDATE trials SET number = number + 1",
    "UPDATE trials SET study_id = 2",
    "UPDATE trials SET trial_id = trial_id + 100",
    "UPDATE trials SET datetime_start = NULL",
    "UPDATE trials SET datetime_complete = NULL",
    "UPDATE trials SET datetime_complete = 'tomorrow'",
    "UPDATE trials SET datetime_start = '9999-12-31 23:59:59', datetime_complete = '0001-01-01 00:00:00'",
    "UPDATE trials SET datetime_start = 12",
    "DELETE FROM trials WHERE number = 1",
    "DELETE FROM trial_params WHERE param_name = 'mixup_alpha'",
    "DELETE FROM trial_params WHERE trial_id = 1",
    "UPDATE trial_params SET param_name = 'depth' WHERE param_name = 'lr_scale'",
    "UPDATE trial_params SET param_value = NULL",
    "UPDATE trial_params SET param_value = 1e308",
    "UPDATE trial_params SET param_value = -1",
    "UPDATE trial_params SET param_value = 'much'",
    "UPDATE trial_params SET param_value = 9e999",
    "UPDATE trial_params SET param_value = 77 WHERE param_name = 'optimizer'",
    "UPDATE trial_params SET distribution_json = 'nonsense'",
    "UPDATE trial_params SET distribution_json = '{}'",
    "UPDATE trial_params SET distribution_json = '[]' WHERE trial_id = 2",
    "UPDATE trial_params SET distribution_json = '{\"name\": \"Odd\", \"attributes\": {}}'",
    "UPDATE trial_params SET distribution_json = (SELECT distribution_json FROM trial_params LIMIT 1)",
    *(f"UPDATE trial_params SET distribution_json = '{json.dumps({'name': name, 'attributes': attributes})}'"
      for name, attributes in (
        ("FloatDistribution", {"low": 0.1, "high": 1e308, "log": True, "step": None}),
        ("FloatDistribution", {"low": 5, "high": 1, "log": False, "step": None}),
        ("IntDistribution", {"low": 0, "high": 2**80, "log": False, "step": 1}),
        ("CategoricalDistribution", {"choices": ["cobol", ["lion"], None]}),
    )),
    "UPDATE trial_params SET distribution_json = replace(distribution_json, 'lion', '../lion')",
    "UPDATE trial_values SET value = NULL",
    "UPDATE trial_values SET value = 1e300",
    "UPDATE trial_values SET value = -0.5",
    "UPDATE trial_values SET value = 'best'",
    "UPDATE trial_values SET value_type = 'INF_POS'",
    "UPDATE trial_values SET value_type = 'LARGE'",
    "UPDATE trial_values SET objective = 5",
    "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (1, 1, 0.5, 'FINITE')",
    "UPDATE trial_intermediate_values SET step = NULL",
    "UPDATE trial_intermediate_values SET step = -1",
    f"UPDATE trial_intermediate_values SET step = {2**62} WHERE step = 1",
    "UPDATE trial_intermediate_values SET step = 'first'",
    "UPDATE trial_intermediate_values SET intermediate_value = 'good'",
    "UPDATE trial_intermediate_values SET intermediate_value_type = 'NAN'",
    "UPDATE trial_intermediate_values SET intermediate_value_type = NULL",
    *(f"UPDATE trial_user_attributes SET value_json = '{value}' WHERE key = 'folder'" for value in (
        '"../../outside"', '"/tmp/outside"', '".."', '""', '"trial-0001/../../outside"', '"trial-0001\\n"', "null",
        "7", '["trial-0001"]', '"trial-0000"', '"trial-\\ud800"', '"trial-0001', '"trial-٣٣٣٣"',
    )),
    "UPDATE trial_user_attributes SET key = 'place'",
    "UPDATE trial_system_attributes SET value_json = 'nonsense'",
    *(f"UPDATE trial_system_attributes SET value_json = '{value}' WHERE key = 'fixed_params'" for value in (
        "null", "[]", "7", '{"optimizer": "cobol"}', '{"lr_scale": "much"}', '{"lr_scale": 1e400}', '{"depth": 3}',
        '{"mixing_probability": 9}', '{"mixup_alpha": -1}', f'{{"lr_scale": {HUGE}}}', '{"lr_scale": NaN}',
        '{"optimizer": {"lion": 1}}', '{"lr_scale": true}',
    )),
    *(f"UPDATE trial_system_attributes SET value_json = '{value}' WHERE key IN ('retry_history', 'failed_trial')"
      for value in ("null", '"x"', "7", "{}")),
    "UPDATE trial_heartbeats SET heartbeat = NULL",
    "UPDATE trial_heartbeats SET heartbeat = 'never'",
    "UPDATE trial_heartbeats SET heartbeat = '9999-12-31 23:59:59'",
    "UPDATE trial_heartbeats SET heartbeat = '0001-01-01 00:00:00'",
    "UPDATE trial_heartbeats SET trial_id = 1",
    "INSERT INTO trial_heartbeats (trial_id, heartbeat) SELECT trial_id, '2020-01-01 00:00:00' FROM trials",
    "CREATE TRIGGER t BEFORE INSERT ON trials BEGIN SELECT RAISE(ABORT, 'no'); END",
    "CREATE TRIGGER t BEFORE UPDATE ON trials BEGIN SELECT RAISE(IGNORE); END",
    "ALTER TABLE trials DROP COLUMN datetime_start",
    "ALTER TABLE trial_params RENAME COLUMN param_value TO value",
]  # fmt: skip

# What a value may be instead.
ODD = [
    None, -1, 0, 1, 7, 2.5, 2**31, 2**62, 1e308, float("inf"), "", "x", "..", "../../outside", "null", "[]", "{}",
    "NaN", '"x"', "7", "[[]]", '{"a": {}}', "[" * 5_000, HUGE, "\x1b[2J", "x" * 100_000, b"\xff\x00", "COMPLETE",
    "RUNNING", "WAITING", "FAIL", "PRUNED", "9999-12-31 23:59:59", "2020-01-01 00:00:00.000000",
]  # fmt: skip


class Hang(BaseException):
    """Not an Exception, so that nothing takes it for a broken database."""


class Killed(BaseException):
    """Nothing is told to the database any more."""


class Trainings:
    """In the place of `train`: each trial's accuracies by epoch, or what ends it."""

    def __init__(self, out: Path, *outcomes: Any) -> None:
        self.out, self.outcomes = out, list(outcomes)

    def __call__(self, config: Any, state: Any, force: bool, *, test: bool, after_epoch: Callable) -> Any:
        assert Path(config.run.out).parent == self.out
        assert Path(config.run.out).name.startswith("trial-")
        outcome = self.outcomes.pop(0) if self.outcomes else [0.5, 0.6]
        if isinstance(outcome, BaseException):
            raise outcome
        for epochs_done, accuracy in enumerate(outcome, 1):
            after_epoch(epochs_done, accuracy)
        entries = [{"kind": "epoch", "val_accuracy": accuracy} for accuracy in outcome]
        return SimpleNamespace(entries=lambda: entries)


def go(database: Path, data_dir: Path, *outcomes: Any) -> str:
    out = database.parent / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train", Trainings(out, *outcomes))
        patch.setattr(sweep, "GRACE", 1)
        patch.setattr(sweep_database, "GRACE", 1)
        patch.setattr(sweep_database, "STARTUP", 1)
        patch.setattr(sweep_database, "OPENING", -1)
        patch.setattr("time.sleep", lambda seconds: None)  # Optuna's, after a write that failed
        patch.setattr(sweep, "sleep", lambda seconds: None)
        config = quick(data_dir, None, epochs=2)
        return sweep.sweep(config, TRIALS, SPACE, f"sqlite:///{database}", "s", out)


@pytest.fixture(scope="module", autouse=True)
def _versions_read_once() -> Iterator[None]:
    """Optuna reads eleven files of its own whenever it opens a database, a third of the time here."""
    read, scripts = _VersionManager._create_alembic_script, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _VersionManager,
            "_create_alembic_script",
            lambda self: (scripts or scripts.append(read(self)) or scripts)[0],
        )
        yield


@pytest.fixture(scope="module")
def whole(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with trials of every state."""
    database = tmp_path_factory.mktemp("whole") / "s.db"
    with pytest.raises(SystemExit):
        go(database, data_dir, [0.5, 0.6], [0.6, 0.7], [0.1, 0.1], SystemExit(143))
    with pytest.raises(Killed):
        go(database, data_dir, Killed())
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{database}")
    study.enqueue_trial({"optimizer": "sgd", "lr_scale": 2.0})
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"}
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    return database.read_bytes()


@pytest.fixture
def attempt(data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> Callable[[bytes], str | None]:
    """What a sweep on a database of these bytes told, or None where it was refused as it should be."""
    database = tmp_path / "inner" / "s.db"
    database.parent.mkdir()

    def hang(*_: Any) -> None:
        raise Hang

    def attempt(content: bytes) -> str | None:
        database.write_bytes(content)
        before = signal.signal(signal.SIGALRM, hang)
        signal.alarm(SECONDS)
        try:
            return go(database, data_dir)
        except UserError as error:
            message = str(error)
            assert message.isprintable(), message
            assert message.endswith(".")
            assert str(database) in message or str(database.parent) in message
            assert len(message) < 1_000 + 2 * len(str(database))
            return None
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            assert "Traceback" not in capfd.readouterr().err
            assert [path.name for path in tmp_path.iterdir()] == ["inner"]

    return attempt


def changed(whole: bytes, path: Path, statement: str, *values: Any) -> bytes:
    """The database after one statement of SQL, under which no constraint holds."""
    path.write_bytes(whole)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            connection.execute(statement, values)
        except sqlite3.IntegrityError:
            table = statement.split()[1 if statement.startswith("UPDATE") else 2]
            connection.executescript(
                f"CREATE TABLE loose AS SELECT * FROM {table}; DROP TABLE {table};ALTER TABLE loose RENAME TO {table}"
            )
            connection.execute(statement, values)
    return path.read_bytes()


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "s.db"


def test_the_whole_one_is_gone_on_with(whole, attempt):
    assert "Best of 5: " in attempt(whole)


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("statement", STATEMENTS)
def test_one_statement(statement, whole, attempt, scratch):
    attempt(changed(whole, scratch, statement))


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_value(number, whole, attempt, scratch):
    random = Random(number)
    scratch.write_bytes(whole)
    with closing(sqlite3.connect(scratch)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = random.choice(tables)
        column = random.choice([row[1] for row in connection.execute(f"PRAGMA table_info({table})")])
        rows = [rowid for (rowid,) in connection.execute(f"SELECT rowid FROM {table}")]
    where = random.choice(["", *(f" WHERE rowid = {rowid}" for rowid in rows[:3])])
    with suppress(sqlite3.DatabaseError):  # a primary key that is no number, or twice the same
        attempt(changed(whole, scratch, f"UPDATE {table} SET {column} = ?{where}", random.choice(ODD)))


@pytest.mark.parametrize("number", NUMBERS)
def test_broken_bytes(number, whole, attempt):
    random, content = Random(number), bytearray(whole)
    for _ in range(random.randint(1, 4)):
        at, length = random.randrange(len(content)), random.choice([1, 4, 100, 4096])
        match random.randrange(5):
            case 0:
                content[at : at + length] = random.randbytes(length)
            case 1:
                content[at : at + length] = bytes(length)
            case 2:
                del content[at : at + length]
            case 3:
                del content[at:]
                content += whole[: random.choice([0, 100])]
            case 4:
                content[random.randrange(100)] = random.randrange(256)  # the header
    attempt(bytes(content))
