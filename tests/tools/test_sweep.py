import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from math import isnan
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState

from emnist_dali import recipes
from emnist_dali.cli import main
from emnist_dali.config import Mixing, Run, from_dict
from emnist_dali.core.errors import InUseError, UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.core.locks import LOCK, Lock
from emnist_dali.runs.checkpoint import load_state
from emnist_dali.tools import search_space, sweep, sweep_database
from emnist_dali.training.session import train
from emnist_dali.training.trainer import DivergedError

from ..training_runs import at_step, flags, quick, signalled

SPACE = ("lr", "mixing")


def url(path):
    return f"sqlite:///{path}"


def trials_in(path, name="s"):
    return optuna.load_study(study_name=name, storage=url(path)).trials


def counted(trials):
    return [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def kinds(folder):
    return {json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()}


@pytest.fixture(scope="module")
def swept(data_dir, tmp_path_factory):
    """A sweep of three trainings: its folder, its database, its config and what it told."""
    folder = tmp_path_factory.mktemp("sweep")
    config = quick(data_dir, None, epochs=1)
    told = sweep.sweep(config, 3, SPACE, url(folder / "s.db"), "s", folder / "out")
    return folder / "out", folder / "s.db", config, told


class Trainings:
    """In the place of `train`: each trial's accuracies by epoch, what ends it, or a function of `train`'s arguments.

    `configs` is what they were given.
    """

    def __init__(self, *outcomes):
        self.outcomes, self.configs = list(outcomes), []

    def __call__(self, config, state, force, *, test, after_epoch):
        self.configs.append(config)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        if callable(outcome):
            outcome = outcome(config, after_epoch)
        for epochs_done, accuracy in enumerate(outcome, 1):
            after_epoch(epochs_done, accuracy)
        return SimpleNamespace(entries=lambda: [{"kind": "epoch", "val_accuracy": accuracy} for accuracy in outcome])


@pytest.fixture
def run(data_dir, tmp_path, monkeypatch):
    """Sweeps with `Trainings` of three epochs instead of real ones; returns what each trial was given."""

    def sweep_with(trials, *outcomes, space=SPACE, given=(), **options):
        trainings = Trainings(*outcomes)
        monkeypatch.setattr(sweep, "train", trainings)
        config = quick(data_dir, None, **{"epochs": 3, **options})
        sweep.sweep(config, trials, space, url(tmp_path / "s.db"), "s", tmp_path / "out", given)
        assert not trainings.outcomes
        return trainings.configs

    return sweep_with


def test_each_trial_is_a_run_that_reads_no_test_image(swept):
    out, database, *_ = swept
    trials = trials_in(database)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert sorted(path.name for path in out.glob("trial-*")) == ["trial-0000", "trial-0001", "trial-0002"]
    for trial in trials:
        folder = out / trial.user_attrs["folder"]
        assert kinds(folder) == {"epoch"}
        assert not list(folder.glob("predictions-*"))
        assert load_state(folder / "checkpoints" / "last.pt")["best"] == trial.value


def test_best_json_is_the_best_trials_recipe(swept):
    out, database, *_ = swept
    best = max(trials_in(database), key=lambda trial: trial.value)
    found = from_dict(read_json(out / "best.json"))
    asked = from_dict(load_state(out / best.user_attrs["folder"] / "checkpoints" / "last.pt")["asked"])
    assert (found.data, found.model, found.training) == (asked.data, asked.model, asked.training)
    assert (found.run.out, found.run.track, found.run.wandb) == (None, (), Run().wandb)
    assert recipes.choose(str(out / "best.json"), None, gpu=False)[0] == found


def test_the_table_has_the_trials_from_the_best(swept):
    out, *_, told = swept
    lines = told.splitlines()
    values = [float(line.split()[1]) for line in lines[1:4]]
    assert values == sorted(values, reverse=True)
    assert lines[4].startswith(f"Best of 3: trial {lines[1].split()[0]}, validation accuracy {values[0]:.2f} %")
    assert f"--recipe {out / 'best.json'}" in lines[5]
    assert len(lines) == 6


def test_the_page_shows_its_charts_on_a_phone(swept, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((swept[0] / "sweep.html").as_uri())
    assert page.locator(".chart svg[role=img]").count() >= 3
    assert "trial 0" in page.locator("[data-tip]").first.get_attribute("data-tip")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("table").last.locator("tbody tr").count() == 3
    assert not said
    page.close()


def test_a_sweep_at_its_end_trains_nothing_and_more_trials_only_what_is_left(run):
    assert len(run(2, [0.5], [0.6])) == 2
    assert not run(2)
    assert len(run(3, [0.7])) == 1


def test_the_first_trial_is_the_recipe_as_it_is(run, data_dir):
    first, second = run(2, [0.5], [0.5])
    asked = quick(data_dir, None, epochs=3)
    assert (first.data, first.model, first.training) == (asked.data, asked.model, asked.training)
    assert second.training != asked.training


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_has_its_place_in_the_space(name):
    config = recipes.RECIPES[name]("balanced").override({"device": "cpu"})
    space = search_space.Space(config, search_space.DIMENSIONS)
    own = space.recipe_params()
    assert space.apply(own) == config
    assert own["image_size"] in space.sizes
    assert space.distributions.keys() == own.keys()
    assert optuna.create_study().ask(space.distributions).params.keys() == own.keys()


def test_rate_and_decay_follow_the_optimizer_unless_an_option_fixes_them():
    config = recipes.improved("balanced")  # Lion
    found = search_space.Space(config, ()).apply({"optimizer": "adamw", "lr_scale": 2.0}).training
    assert found.lr == pytest.approx(2 * 5 * config.training.lr)
    assert found.weight_decay == pytest.approx(config.training.weight_decay / 5)
    fixed = search_space.Space(config, (), ("lr", "weight_decay")).apply({"optimizer": "adamw"}).training
    assert (fixed.lr, fixed.weight_decay) == (config.training.lr, config.training.weight_decay)


def test_a_recipe_outside_the_usual_bounds_is_within_its_own_space():
    mixing = Mixing(mixup_alpha=0.02, cutmix_alpha=8.0, probability=0.5, switch=0.5)
    config = recipes.cpu("balanced")
    config = replace(config, training=replace(config.training, mixing=mixing))
    space = search_space.Space(config, ("mixing",))
    own = {name: space.recipe_params()[name] for name in space.distributions}
    assert optuna.create_trial(params=own, distributions=space.distributions, value=0.5).params == own


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lr_scale": "2"}, "lr_scale is '2'"),
        ({"lr_scale": True}, "lr_scale is True"),
        ({"lr_scale": 1e300}, "lr_scale is 1e"),
        ({"lr_scale": float("nan")}, "lr_scale is nan"),
        ({"optimizer": ["lion"]}, r"optimizer is \['lion'\]"),
        ({"image_size": 28.0}, "image_size is 28.0"),
        ({"depth": 3}, "there is no parameter 'depth'"),
        ({"mixing_probability": 0.2}, "mixup_alpha is missing"),
        (None, "not an object"),
    ],
)
def test_parameters_that_no_trial_has_are_one_sentence(params, message):
    space = search_space.Space(recipes.cpu("balanced"), search_space.DIMENSIONS)
    with pytest.raises(UserError, match=f"No trial of this sweep has such parameters: .*{message}"):
        space.apply(params)


@pytest.mark.parametrize(("epochs", "warmup", "cycle"), [(16, 0.2, 8), (5, 0.2, 2), (1, 0.2, 1), (3, 5, 1)])
def test_restarts_are_two_cycles_where_the_recipe_has_none(epochs, warmup, cycle):
    config = recipes.cpu("balanced").override({"epochs": epochs, "warmup": warmup})
    found = search_space.Space(config, ()).apply({"schedule": "restarts"}).training
    assert (found.schedule, found.restart_every) == ("restarts", cycle)
    seed = recipes.published("balanced")
    assert search_space.Space(seed, ()).apply({"schedule": "restarts"}) == seed


def test_what_an_option_fixes_is_not_searched(run):
    options = {"lr": 0.003, "image_size": 16, "optimizer": "adamw"}
    configs = run(3, [0.1], [0.2], [0.3], space=(), given={*options, "epochs"}, **options)
    assert {(c.training.lr, c.training.optimizer, c.data.image_size) for c in configs} == {(0.003, "adamw", 16)}
    assert len({c.training.weight_decay for c in configs}) == 3
    with pytest.raises(UserError, match=r"training\.lr and --space lr exclude each other"):
        search_space.dimensions(["lr"], {"lr"})


def test_trials_below_the_median_are_pruned_and_count(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_database, "STARTUP", 1)
    run(3, [0.5, 0.6, 0.7], [0.4, 0.9, 0.9], [0.6, 0.7, 0.1])
    trials = trials_in(tmp_path / "s.db")
    # The third is below the median after its last epoch only, when nothing is saved any more.
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [trial.value for trial in trials] == [0.7, 0.4, 0.7]


def test_a_trial_that_diverges_counts_and_the_sweep_goes_on(run, tmp_path, capsys):
    run(3, [0.5], DivergedError("The loss is nan."), [0.6])
    assert [trial.state.name for trial in trials_in(tmp_path / "s.db")] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert "Trial 1 is abandoned: The loss is nan." in capsys.readouterr().out


def test_a_real_divergence_is_told_apart_from_other_errors(data_dir, tmp_path):
    with pytest.raises(DivergedError, match="resumes from there"):
        train(quick(data_dir, tmp_path / "run", lr=1e30, optimizer="sgd"))


def test_an_error_ends_the_sweep_and_its_trial_does_not_count(run, tmp_path):
    with pytest.raises(UserError, match="no space"):
        run(2, [0.5], UserError("There is no space."))
    assert len(counted(trials_in(tmp_path / "s.db"))) == 1
    run(2, [0.6])


def test_an_interrupted_trial_does_not_count_and_is_gone_on_with(data_dir, tmp_path, monkeypatch, capsys):
    database, out = tmp_path / "s.db", tmp_path / "out"
    config = quick(data_dir, None, epochs=2)
    with monkeypatch.context() as patch:
        signalled(patch, *at_step(11))  # of 18: in the second epoch
        with pytest.raises(SystemExit) as end:
            sweep.sweep(config, 1, SPACE, url(database), "s", out)
    assert end.value.code == 143
    assert "the same command resumes it" in capsys.readouterr().out
    assert not counted(trials_in(database))
    sweep.sweep(config, 1, SPACE, url(database), "s", out)
    failed, again = trials_in(database)
    assert (failed.state.name, again.state.name) == ("FAIL", "COMPLETE")
    assert again.params == failed.params
    assert len(again.intermediate_values) == 2
    assert [path.name for path in out.glob("trial-*")] == ["trial-0000"]
    assert read_json(out / "trial-0000" / "env.json")["resumed"][0]["step"] == 11


class Killed(BaseException):
    """Nothing is told to the database any more."""


def test_a_trial_whose_process_is_gone_is_taken_over(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_database, "HEARTBEAT", 1)
    monkeypatch.setattr(sweep_database, "GRACE", 1)
    with pytest.raises(Killed):
        run(2, [0.5], Killed())
    assert [trial.state.name for trial in trials_in(tmp_path / "s.db")] == ["COMPLETE", "RUNNING"]
    run(2, [0.6])
    _, lost, again = trials_in(tmp_path / "s.db")
    assert (lost.state.name, again.state.name, again.value) == ("FAIL", "COMPLETE", 0.6)
    assert again.params == lost.params
    assert again.user_attrs["folder"] == lost.user_attrs["folder"]


def changed(path, statement):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def silent(path):
    """Since long ago no process has written a heartbeat."""
    changed(path, "UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")


def take_over(path):
    """What another process does with the trial of one that is suspended."""
    silent(path)
    study = optuna.load_study(study_name="s", storage=sweep_database.open_storage(url(path), ""))
    optuna.storages.fail_stale_trials(study)


def goes_on(config, after_epoch):
    after_epoch(2, 0.9)


def ends(config, after_epoch):
    return []


def finds_another_process(config, after_epoch):
    raise InUseError("It is in use.")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("then", [goes_on, ends, finds_another_process])
def test_a_process_that_wakes_up_drops_a_trial_that_was_taken_over(then, run, tmp_path, capsys):
    def suspended(config, after_epoch):
        after_epoch(1, 0.1)
        take_over(tmp_path / "s.db")
        then(config, after_epoch)
        return [0.9]

    first, again = run(1, suspended, [0.2, 0.6])
    assert first.run.out == again.run.out
    lost, done = trials_in(tmp_path / "s.db")
    assert (lost.state.name, done.state.name, done.value) == ("FAIL", "COMPLETE", 0.6)
    assert lost.intermediate_values == {0: 0.1}
    assert done.intermediate_values == {0: 0.1, 1: 0.6}
    assert capsys.readouterr().out.count("Trial 0 is dropped") == 1


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_that_was_taken_over_is_not_queued_again_by_the_process_that_lost_it(run, tmp_path):
    def suspended(config, after_epoch):
        take_over(tmp_path / "s.db")
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run(1, suspended)
    assert [trial.state.name for trial in trials_in(tmp_path / "s.db")] == ["FAIL", "WAITING"]


def test_who_takes_over_from_a_process_that_still_has_the_folder_trains_in_a_new_one(data_dir, tmp_path, monkeypatch):
    database, out = tmp_path / "s.db", tmp_path / "out"
    config = quick(data_dir, None, epochs=1, steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", Trainings(Killed()))
        with pytest.raises(Killed):
            sweep.sweep(config, 1, SPACE, url(database), "s", out)
    silent(database)
    (out / "trial-0000").mkdir()
    with Lock(out / "trial-0000" / LOCK, out):
        sweep.sweep(config, 1, SPACE, url(database), "s", out)
    lost, done = trials_in(database)
    assert (lost.user_attrs["folder"], done.user_attrs["folder"]) == ("trial-0000", "trial-0001")
    assert [path.name for path in (out / "trial-0000").iterdir()] == [LOCK]
    assert kinds(out / "trial-0001") == {"epoch"}


def test_a_trial_that_was_asked_for_and_never_begun_is_taken_back(run, tmp_path, monkeypatch):
    run(1, [0.5])
    study = optuna.load_study(study_name="s", storage=url(tmp_path / "s.db"))
    study.enqueue_trial({"lr_scale": 2.5})
    study.ask()
    monkeypatch.setattr(sweep, "sleep", lambda seconds: silent(tmp_path / "s.db"))
    run(2, [0.6])
    _, lost, again = trials_in(tmp_path / "s.db")
    assert (lost.state.name, again.state.name, again.params["lr_scale"]) == ("FAIL", "COMPLETE", 2.5)


def test_a_heartbeat_that_fails_is_followed_by_the_next(monkeypatch, capfd):
    beats, third = [], threading.Event()

    def record_heartbeat(trial_id):
        beats.append(trial_id)
        if len(beats) < 3:
            raise RuntimeError
        third.set()

    monkeypatch.setattr(sweep_database, "HEARTBEAT", 0.001)
    with sweep_database.heartbeats(
        SimpleNamespace(record_heartbeat=record_heartbeat, remove_session=lambda: None), 7
    ):
        assert third.wait(60)
    assert set(beats) == {7}
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def hang_up():
    """SIGHUP is left as it was."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda *_: os.kill(os.getpid(), signal.SIGHUP) or [0.5]
    signal.signal(signal.SIGHUP, before)


def test_a_dropped_connection_ends_a_sweep_that_can_be_gone_on_with(hang_up, run, tmp_path, monkeypatch):
    def say(line):
        if "has not finished" in line:
            raise OSError  # the terminal is gone

    monkeypatch.setattr(sweep, "say", say)
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(SystemExit) as end:
        run(1, hang_up)
    assert end.value.code == 129
    assert signal.getsignal(signal.SIGHUP) == before
    run(1, [0.6])
    assert [trial.state.name for trial in trials_in(tmp_path / "s.db")] == ["FAIL", "COMPLETE"]


def test_a_dropped_connection_is_nothing_to_nohup(hang_up, run, tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run(1, hang_up)
    assert [trial.state.name for trial in trials_in(tmp_path / "s.db")] == ["COMPLETE"]


def test_a_sweep_runs_in_a_thread_too(run, tmp_path):
    thread = threading.Thread(target=run, args=(1, [0.5]))
    thread.start()
    thread.join()
    assert [trial.state.name for trial in trials_in(tmp_path / "s.db")] == ["COMPLETE"]


def test_trials_that_live_elsewhere_are_left_to_their_processes(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "GRACE", 1)
    run(1, [0.5])
    study = optuna.load_study(study_name="s", storage=url(tmp_path / "s.db"))
    asked = study.ask()
    monkeypatch.setattr(sweep, "sleep", lambda seconds: study._storage.record_heartbeat(asked._trial_id))
    assert not run(2)
    assert "Waiting" in capsys.readouterr().out
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]


@pytest.mark.parametrize("others", [("COMPLETE", "RUNNING"), ("COMPLETE", "WAITING"), ("PRUNED", "COMPLETE")])
def test_of_two_that_ask_for_the_last_trial_the_later_gives_way(others, data_dir, tmp_path, monkeypatch):
    study = optuna.create_study(direction="maximize")
    for state in others:
        study.add_trial(optuna.create_trial(state=TrialState[state], value=0.5 if state == "COMPLETE" else None))
    late = SimpleNamespace(number=len(study.trials))
    monkeypatch.setattr(sweep_database, "_fault", lambda space, trial: None)
    database = sweep_database.SweepDatabase(study, None, "", search_space.Space(quick(data_dir, None), SPACE))
    assert isnan(sweep._accuracy(sweep._Sweep(database, 2, tmp_path), late))


def test_two_processes_on_one_file_run_exactly_the_trials_asked_for(data_dir, tmp_path):
    command = [
        sys.executable, "-m", "emnist_dali", "sweep", "--split", "small", "--recipe", "cpu", "--trials", "3",
        "--storage", url(tmp_path / "s.db"), "--name", "s", "--out", tmp_path / "out", "--space", "mixing",
        *flags(source="glyphs", data_dir=data_dir, batch_size=64, epochs=1, steps=1, device="cpu", image_size=16),
    ]  # fmt: skip
    both = [
        subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(told)
    trials = trials_in(tmp_path / "s.db")
    done = counted(trials)
    assert len(done) == 3
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    assert len({json.dumps(trial.params) for trial in done}) > 1  # the workers draw apart
    assert sum("fixed_params" in trial.system_attrs for trial in trials) == 1  # the recipe's own is tried once
    assert {path.name for path in (tmp_path / "out").glob("trial-*")} == {t.user_attrs["folder"] for t in done}
    assert any("Best of 3" in output for output in told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 32}, "batch_size is 32 and was 64"),
        ({"space": ("lr",)}, r"space is \['lr'\] and was \['lr', 'mixing'\]"),
        ({"given": {"lr"}, "space": ("mixing",)}, r"given is \['lr'\] and was \[\]"),
        ({"seed": 1}, "seed is 1 and was 0"),
    ],
)
def test_another_sweep_of_the_same_name_is_one_sentence(change, message, run):
    run(1, [0.5])
    with pytest.raises(UserError, match=f"The sweep s in .* has other settings: .*{message}.*another --name"):
        run(2, **change)
    run(2, [0.5], keep=2)  # changes no result


@pytest.mark.parametrize(("removed", "resumes"), [(0.0, True), (0.1, False)])
def test_a_sweep_of_an_older_version_is_resumed(removed, resumes, run, tmp_path):
    run(1, [0.5])
    study = optuna.load_study(study_name="s", storage=url(tmp_path / "s.db"))
    study.set_user_attr("decides", {**study.user_attrs["decides"], "erasing": removed})
    if resumes:
        run(2, [0.6])
    else:
        with pytest.raises(UserError, match=r"erasing is None and was 0\.1"):
            run(2)


def test_other_data_are_another_sweep(run, monkeypatch):
    run(1, [0.5])
    monkeypatch.setattr("emnist_dali.data.manifest.Manifest.fingerprint", "other")
    with pytest.raises(UserError, match="data fingerprint is other and was"):
        run(2)


def test_a_study_of_another_program_is_left_alone(run, tmp_path):
    study = optuna.create_study(study_name="s", storage=url(tmp_path / "s.db"), direction="maximize")
    study.optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(UserError, match="has other settings"):
        run(2)


def test_folders_of_another_sweep_are_not_written_to(run, tmp_path):
    (tmp_path / "out" / "trial-0000").mkdir(parents=True)
    with pytest.raises(UserError, match="trial-0000 is not a trial of this sweep"):
        run(1)


def test_a_folder_that_came_in_between_is_not_written_to(run, tmp_path):
    def first(config, after_epoch):
        (tmp_path / "out" / "trial-0001").mkdir()
        return [0.5]

    with pytest.raises(UserError, match="trial-0001 is not a trial of this sweep"):
        run(2, first)
    assert len(counted(trials_in(tmp_path / "s.db"))) == 1


def theirs(name, config):
    """A user's sweep.html, and files that look like best.json."""
    other = config.override({"lr": 0.25})
    return {
        "sweep.html": lambda path: path.with_name("sweep.html").write_text("<h1>Mine</h1>"),
        "notes": lambda path: path.write_text("{}"),
        "a link to nothing": lambda path: path.symlink_to("nothing"),
        "a config without sha256": lambda path: path.write_text(json.dumps(config.to_dict())),
        "another sweep's": lambda path: write_json(path, other.to_dict()),
        "no config": lambda path: write_json(path, {"recipe": "cpu"}),
    }[name]


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    "name",
    ["sweep.html", "notes", "a link to nothing", "a config without sha256", "another sweep's", "no config"],
)
def test_a_file_of_the_users_is_not_replaced(name, early, run, data_dir, tmp_path):
    out = tmp_path / "out"
    put = theirs(name, quick(data_dir, None, epochs=3))

    def appears(config, after_epoch):
        put(out / "best.json")
        return [0.5]

    if early:
        out.mkdir()
        put(out / "best.json")
    before = {path.name: path.lstat().st_mtime_ns for path in out.glob("*")}
    with pytest.raises(UserError, match=r"was not written by .*; choose another"):
        run(1, *([] if early else [appears]))
    after = {path.name: path.lstat().st_mtime_ns for path in out.glob("*") if path.name != LOCK}
    assert len(after) == 1
    assert after == before or not early


def test_best_json_is_replaced_until_somebody_edits_it(run, tmp_path):
    best = tmp_path / "out" / "best.json"
    run(1, [0.5])
    run(2, [0.6])
    edited = best.read_text().replace('"keep": 1', '"keep": 7')
    best.write_text(edited)
    with pytest.raises(UserError, match=r"best\.json was not written by this sweep, or was edited"):
        run(3)
    assert best.read_text() == edited


def test_one_process_at_a_time_writes_the_results(run, tmp_path, monkeypatch):
    def page(study, rows, trials):
        with pytest.raises(InUseError):
            Lock(tmp_path / "out" / LOCK, tmp_path)
        return b"emnist-dali:generated"

    monkeypatch.setattr(sweep, "sweep_page", page)
    run(1, [0.5])
    assert (tmp_path / "out" / "sweep.html").read_text() == "emnist-dali:generated"
    Lock(tmp_path / "out" / LOCK, tmp_path).close()


def test_a_file_in_the_place_of_the_folder_is_one_sentence(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out is not a folder"):
        run(1)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "x/../../y", "/tmp/x", "a\nb", "a ", "\ud800", "x" * 300])
def test_a_name_does_not_place_a_sweep_elsewhere(name, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot name a folder"):
        sweep.sweep(quick(data_dir, None), 1, SPACE, url("s.db"), name, Path("runs") / f"sweep-{name}")
    assert not list(tmp_path.iterdir())


def test_another_programs_database_is_left_as_it_is(run, tmp_path):
    changed(tmp_path / "s.db", "CREATE TABLE photos (name TEXT)")
    before = (tmp_path / "s.db").read_bytes()
    with pytest.raises(UserError, match="is another program's database"):
        run(1)
    assert (tmp_path / "s.db").read_bytes() == before


@pytest.mark.parametrize(
    "address",
    [
        "sqlite://user:hunter2@host/x?password=hunter2",
        "nonsense://user:hunter2@host/x?token=hunter2",
        "postgresql://user:hunter2@localhost:1/x?password=hunter2",
        "sqlite:///{}?password=hunter2",  # Optuna fills in what is in braces
    ],
)
@pytest.mark.filterwarnings("ignore:Query string argument")
def test_no_password_is_told(address, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_database, "OPENING", -1)
    with pytest.raises(UserError, match=r"\*\*\* could not be opened") as error:
        sweep.sweep(quick(data_dir, None), 1, SPACE, address, "s", tmp_path / "out")
    assert "hunter2" not in str(error.value)


def test_each_trial_is_a_wandb_run_of_one_group(data_dir, tmp_path, monkeypatch):
    import wandb

    events = []

    def init(**options):
        events.append((options["name"], options["group"]))
        return SimpleNamespace(id="id", log=lambda *a, **k: None, finish=lambda: events.append("finish"))

    monkeypatch.setattr(wandb, "init", init)
    config = quick(data_dir, None, epochs=1, steps=1, wandb="offline")
    sweep.sweep(config, 2, SPACE, url(tmp_path / "s.db"), "s", tmp_path / "out")
    assert events == [("trial-0000", "s"), "finish", ("trial-0001", "s"), "finish"]


def test_large_images_are_for_gpus_or_recipes_that_have_them():
    cpu, seed = (recipe("balanced").override({"device": "cpu"}) for recipe in (recipes.cpu, recipes.published))
    assert search_space.Space(cpu, ()).sizes == [24, 28, 32, 56]
    assert search_space.Space(seed, ()).sizes == [28, 32, 56, 84, 112]


def invoke(data_dir, tmp_path, *options):
    words = (
        "sweep", "--split", "small", "--recipe", "cpu", "--source", "glyphs", "--data-dir", data_dir, "--device",
        "cpu", "--storage", url(tmp_path / "s.db"), "--out", tmp_path / "out", *options,
    )  # fmt: skip
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--space", "lr", "--space", "depth"), "Unknown dimension depth; --space takes optimizer, lr,"),
        (("--val-fraction", 0), "raise --val-fraction"),
        (("--val-fraction", 0.001), "no image is held out"),
        (("--storage", "sqlite:////nowhere/s.db"), "could not be opened"),
        (("--storage", "nonsense"), "could not be opened"),
        (("--storage", "nonsense://x"), "could not be opened"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(options, message, data_dir, tmp_path):
    result = invoke(data_dir, tmp_path, *options)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_way_to_get_it_is_told(data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = invoke(data_dir, tmp_path)
    assert result.exit_code == 1
    assert "pip install 'emnist-dali[sweep]'" in result.output
