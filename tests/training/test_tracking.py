"""Each tracker's files, read back by its own library."""

import csv
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.config import Run, from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.runs.checkpoint import load_state, save_state
from emnist_dali.runs.folder import RunFolder
from emnist_dali.training import resume, tracking
from emnist_dali.training.session import train

from ..training_runs import at_step, lines, quick, stopped

TRACKERS = ("csv", "tensorboard", "mlflow")


def epochs(run: RunFolder) -> list[dict]:
    return [{name: value for name, value in entry.items() if name != "kind"} for entry in lines(run)[:-2]]


def figures(run: RunFolder) -> dict[str, float]:
    return {
        f"{entry['kind']}/{name}": value
        for entry in lines(run)[-2:]
        for name, value in entry.items()
        if isinstance(value, int | float)
    }


@pytest.fixture(scope="module")
def tracked(data_dir, tmp_path_factory) -> RunFolder:
    """A run that SIGTERM ended in its second epoch, and that went on from the middle of its first."""
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp("tracked") / "run"
        config = quick(data_dir, out, track=TRACKERS, checkpoint_every="5", keep=9)
        path = stopped(patch, config, *at_step(12))
    return train(*resume.load(path / "checkpoints" / "step-00000005.pt", None, {}))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_has_each_epoch_once(tracked):
    table = [{name: float(value) for name, value in row.items()} for row in read_csv(tracked.path / "metrics.csv")]
    assert table == epochs(tracked)
    assert [row["epochs_done"] for row in table] == [1, 2]


def test_csv(tracked):
    settings = {row["setting"]: row["value"] for row in read_csv(tracked.path / "settings.csv")}
    assert (settings["training.epochs"], settings["training.mixing"]) == ("2", "")
    results = {row["figure"]: float(row["value"]) for row in read_csv(tracked.path / "results.csv")}
    assert results == figures(tracked)


def test_tensorboard(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked.path / "tensorboard")).Reload()
    for name in epochs(tracked)[0]:
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in epochs(tracked)]
    for name, value in figures(tracked).items():
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6)
    text = events.Tensors("settings/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert json.loads(text.strip("`\n"))["training"]["epochs"] == 2


def test_mlflow(tracked):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked.path / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("emnist-dali")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert (run.data.params["training.epochs"], run.data.params["data.split"]) == ("2", "small")
    steps = [entry["step"] for entry in epochs(tracked)]
    for name in ("loss", "val_accuracy"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == [
            (step, entry[name]) for step, entry in zip(steps, epochs(tracked), strict=True)
        ]
    assert {name: run.data.metrics[name] for name in figures(tracked)} == figures(tracked)
    assert load_state(tracked.last)["trackers"] == {"mlflow": run.info.run_id}


def test_trackio(data_dir, tmp_path, monkeypatch):
    if find_spec("trackio") is None:
        pytest.skip("trackio is missing: pip install 'emnist-dali[trackio]'")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at the import
    run = train(quick(data_dir, tmp_path / "run", steps=1, track=("trackio",)))
    from trackio.sqlite_storage import SQLiteStorage

    name = load_state(run.last)["trackers"]["trackio"]
    assert name.startswith("run-")
    first, last = SQLiteStorage.get_logs("emnist-dali", name)
    assert {name: first[name] for name in epochs(run)[0]} == epochs(run)[0]
    assert {name: last[name] for name in figures(run)} == figures(run)
    assert SQLiteStorage.get_run_config("emnist-dali", name)["training"]["steps"] == 1


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(name, data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name}.*not installed; pip install 'emnist-dali\[{name}\]'"):
        train(quick(data_dir, tmp_path / "run", track=("csv", name)))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(capsys):
    def note(values, step):
        logged.append(step)

    def full(values, step):
        raise OSError(28, "No space left on device")

    logged, closed = [], []
    trackers = {
        name: SimpleNamespace(id=name, log=log, finish=None, close=lambda completed: closed.append(completed))
        for name, log in (("mlflow", full), ("csv", note))
    }
    with tracking.Tracking(trackers, {"wandb": "earlier"}) as tracker:
        for step in (1, 2):
            tracker.log({"loss": 1.0}, step)
    told = capsys.readouterr().out
    assert told.count("\n") == told.count("The tracker mlflow failed and is left out from here on (") == 1
    assert (logged, closed) == ([1, 2], [True])
    assert tracker.ids == {"wandb": "earlier", "mlflow": "mlflow", "csv": "csv"}


def test_a_tracker_that_cannot_start_is_one_sentence(data_dir, tmp_path, monkeypatch):
    def refuse(start):
        raise RuntimeError("no\nserver")

    monkeypatch.setitem(tracking._TRACKERS, "csv", refuse)
    config = quick(data_dir, tmp_path / "run", track=("csv",))
    with pytest.raises(UserError, match=r"The tracker csv could not start \(no server\)"):
        tracking.start(config, RunFolder(tmp_path), "glyphs", {}, 0)


@pytest.mark.parametrize("before", [[], ["notes.md"], ["mine/tensorboard"]])
def test_a_tracker_that_cannot_start_leaves_what_was_there(before, data_dir, tmp_path, monkeypatch):
    def refuse(start):
        raise RuntimeError("no server")

    out = tmp_path / "new" / "run"
    for name in before:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    monkeypatch.setitem(tracking._TRACKERS, "mlflow", refuse)
    with pytest.raises(UserError, match="no server"):
        train(quick(data_dir, out, track=("csv", "tensorboard", "mlflow")))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out / name for name in before]
    assert out.exists() == (tmp_path / "new").exists() == bool(before)


def test_which_trackers_a_run_has():
    def chosen(**run):
        return tracking.names(from_dict({"recipe": "cpu", "run": run}))

    assert chosen() == []
    assert chosen(wandb="online") == ["wandb"]
    assert chosen(track=["wandb"]) == chosen(track=["wandb"], wandb="online") == ["wandb"]
    assert chosen(track=["csv", "mlflow", "csv"], wandb="offline") == ["csv", "mlflow", "wandb"]
    with pytest.raises(UserError, match=r"run\.track is 'comet'; it must be one of csv, tensorboard"):
        Run(track=("comet",))


def test_track_on_the_command_line(tmp_path, monkeypatch):
    seen = []

    def note(config, *_):
        seen.append(config.run.track)
        raise UserError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("emnist_dali.training.session.train", note)
    for options in (
        ["--track", "csv", "--track", "mlflow"],
        ["--set", "run.track=csv,mlflow"],
        ["--set", "run.track="],
        [],
    ):
        CliRunner().invoke(main, ["train", "--recipe", "cpu", *options])
    assert seen == [("csv", "mlflow"), ("csv", "mlflow"), (), ()]
    wrong = CliRunner().invoke(main, ["train", "--track", "comet"])
    assert wrong.exit_code == 2
    assert "tensorboard" in wrong.output


def test_a_checkpoint_of_a_version_that_had_only_wandb(tmp_path):
    for before, now in (("abc", {"wandb": "abc"}), (None, {})):
        save_state(tmp_path / "last.pt", {"step": 1, "wandb": before})
        assert load_state(tmp_path / "last.pt") == {"step": 1, "trackers": now}


def test_a_checkpoint_of_a_version_that_did_not_know_whether_training_ended(tmp_path):
    save_state(tmp_path / "last.pt", {"waited": 0.0})
    assert load_state(tmp_path / "last.pt") == {"waited": 0.0, "ended": False}
