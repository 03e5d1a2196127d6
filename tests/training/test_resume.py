import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from click.testing import CliRunner

from emnist_dali import config as config_module
from emnist_dali import recipes
from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.core.tensor_files import encode
from emnist_dali.data.pack import pack
from emnist_dali.data.sources import Part
from emnist_dali.loading import backends
from emnist_dali.recipes import choose
from emnist_dali.runs.checkpoint import load_state, load_weights, save_state
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.schema import to_line
from emnist_dali.training import build, resume, trainer
from emnist_dali.training.session import Session, train

from ..training_runs import assert_same, at_step, equal, flags, go_on, kept, lines, quick, stopped, untimed

LAST = 18  # steps of two epochs
STOPS = {
    "the first step": at_step(1),
    "mid-epoch": at_step(5),
    "the last step of an epoch": at_step(9),
    "validation": ("_stop_if_signalled", lambda session: not session.trainer.done),
    "the last validation": ("_stop_if_signalled", lambda session: session.trainer.step == LAST),
    "the test": ("_stop_if_signalled", lambda session: session.trainer.done),
}


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A run that nothing has ended."""
    return train(quick(data_dir, tmp_path_factory.mktemp("whole") / "run")).path


@pytest.fixture(scope="module")
def half(data_dir, tmp_path_factory):
    """A run that was ended in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        config = quick(data_dir, tmp_path_factory.mktemp("half") / "run", keep=3, checkpoint_every="2")
        return stopped(patch, config, *at_step(11))


@pytest.fixture
def run(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run")


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_was_ended_comes_to_the_same_end(stop, whole, data_dir, tmp_path, monkeypatch, capsys):
    path = stopped(monkeypatch, quick(data_dir, tmp_path / "run"), *STOPS[stop])
    assert f"resume with `emnist-dali train --resume {path}`" in capsys.readouterr().out
    go_on(path)
    assert_same(path, whole)
    assert [line["kind"] for line in lines(RunFolder(path))] == ["epoch", "epoch", "test", "unseen"]


def test_a_run_from_when_epochs_were_counted_from_0_is_read_and_resumed(run, half, whole):
    def aged(fields):
        return {"epoch": fields["epochs_done"] - 1, **{k: v for k, v in fields.items() if k != "epochs_done"}}

    folder, before = RunFolder(run), lines(RunFolder(half))
    weights, about = load_weights(folder.best)
    folder.best.write_bytes(encode(weights, {"about": json.dumps(aged(about))}))
    state = torch.load(folder.last, weights_only=True)
    save_state(folder.last, {**state, "log": list(map(aged, state["log"]))})
    (run / "metrics.jsonl").write_text("".join(map(to_line, map(aged, before))))
    assert '"epoch": 0' in (run / "metrics.jsonl").read_text()
    assert [entry["epochs_done"] for entry in lines(folder)] == [1]
    assert lines(folder) == before
    assert load_weights(folder.best)[1] == about
    go_on(run)
    best = RunFolder(whole).best
    assert equal(load_weights(folder.best), load_weights(best))
    shutil.copy(best, folder.best)  # the old file may stay, if the first epoch was the best
    assert_same(run, whole)
    assert [entry.get("epochs_done") for entry in lines(folder)] == [1, 2, None, None]


@pytest.mark.parametrize("optimizer", ["lion", "muon", "sgd", "adam"])
def test_so_does_one_with_every_other_optimizer_mixing_accumulation_and_dropout(
    optimizer, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, drop_rate=0.3, drop_path_rate=0.2))
    monkeypatch.setattr(recipes, "cpu", recipes.published)
    options = {"model": "test_efficientnet", "pretrained": False, "image_size": 32, "epochs": 1}

    def config(name):
        made = quick(data_dir, tmp_path / name, optimizer=optimizer, **options)
        assert made.training.mixing
        assert made.training.accumulation == 2
        return made

    path = stopped(monkeypatch, config("ended"), *at_step(2))
    go_on(path)
    assert_same(path, train(config("whole")).path)


def test_steps_that_end_a_run_do_not_end_its_validation(data_dir, tmp_path, monkeypatch):
    path = stopped(monkeypatch, quick(data_dir, tmp_path / "ended", steps=3), *at_step(3))
    go_on(path)
    assert_same(path, train(quick(data_dir, tmp_path / "whole", steps=3)).path)


def test_a_finished_run_is_complete_and_stays_as_it_is(whole, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("[a-z]*") if path.is_file()}
    go_on(whole)
    assert f"{whole} is complete. It stays as it is" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in whole.rglob("[a-z]*") if path.is_file()} == before


def invoke(*arguments):
    return CliRunner().invoke(main, ["train", *(str(argument) for argument in arguments)])


def test_auto_starts_and_goes_on(whole, data_dir, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ["--split", "small", "--source", "glyphs", "--recipe", "cpu", "--data-dir", data_dir, "--device", "cpu"]
    command += [*flags(image_size=16), "--batch-size", 64, "--epochs", 2, "--out", out, "--resume", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_test", lambda session: 1 / 0)
        assert isinstance(invoke(*command).exception, ZeroDivisionError)
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "Resuming " in result.output
    assert_same(out, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "auto"], "--resume auto needs --out"),
        (["--resume", "."], "contains no checkpoint"),
        (["--resume", "nowhere"], "nowhere contains no checkpoint"),
        (["--resume", "text"], "text is not in a run folder"),
        (["--resume", ".", "--out", "run"], "drop --out"),
    ],
)
def test_nothing_to_go_on_with_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("text")
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1


def test_the_newest_checkpoints_are_kept_and_each_can_be_gone_on_from(whole, run):
    def steps():
        return [int(path.stem.removeprefix("step-")) for path in sorted(run.glob("checkpoints/step-*.pt"))]

    assert steps() == [9, 10, 11]
    go_on(run / "checkpoints" / "step-00000009.pt", checkpoint_every="5")
    assert_same(run, whole)
    assert steps() == [10, 15, 18]


def test_best_weights_and_checkpoints_of_a_course_that_is_given_up_are_replaced(data_dir, tmp_path):
    path = tmp_path / "run"
    train(quick(data_dir, path, keep=9, checkpoint_every="6"))
    before = RunFolder(path).best.read_bytes()
    run = go_on(path / "checkpoints" / "step-00000006.pt", force=True, lr=1e-9)
    assert run.best.read_bytes() != before
    best = max((line for line in lines(run) if line["kind"] == "epoch"), key=lambda line: line["val_accuracy"])
    assert load_state(run.last)["best"] == best["val_accuracy"]
    assert run.best_step() == best["step"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 32), ("seed", 1), ("lr", 1e-3), ("image_size", 28), ("epochs", 3), ("weight_decay", 0.1),
        ("schedule", "restarts"), ("steps", 15), ("val_fraction", 0.1), ("amp", "bf16"),
    ],
)  # fmt: skip
def test_a_setting_that_changes_the_result_is_named(name, value, run):
    before = kept(run)
    with pytest.raises(UserError, match=rf"would change the result: .*\b{name} is {value} and was .*--resume-force"):
        go_on(run, **{name: value})
    assert kept(run) == before


def test_another_recipe_is_named(run):
    with pytest.raises(UserError, match="with recipe cpu, not published"):
        resume.load(run / "checkpoints" / "last.pt", "published", {})


def test_a_file_is_read_again_and_its_changes_are_named(data_dir, tmp_path):
    """As the command that began the run gives it once more, with --resume auto."""
    file = tmp_path / "mine.json"
    write_json(file, quick(data_dir, None, steps=1).to_dict())
    begun = choose(str(file), None, gpu=False)[0].override({"out": str(tmp_path / "run")})
    run = train(begun, test=False)
    train(*resume.load(run.last, str(file), {}), test=False)
    write_json(file, quick(data_dir, None, steps=1, lr=0.5).to_dict())
    with pytest.raises(UserError, match=r"training\.lr is 0\.5 and was 0\.004"):
        train(*resume.load(run.last, str(file), {}), test=False)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        resume.load(run.last, str(file), {})


def test_a_checkpoint_of_an_older_version_is_resumed(run, whole):
    """From before recipes were renamed, and erasing and elastic were removed."""
    state = load_state(run / "checkpoints" / "last.pt")
    for config in (state["config"], state["asked"]):
        config["recipe"] = "seed"
        config["training"] |= {"erasing": 0.0, "elastic": 0.0}
    torch.save(state, run / "checkpoints" / "last.pt")
    assert resume.load(run / "checkpoints" / "last.pt", "published", {})[0].recipe == "published"
    go_on(run)
    assert_same(run, whole)
    assert read_json(run / "config.json")["recipe"] == "published"


def test_other_data_are_named(run, drawn, data_dir, tmp_path):
    train_part = drawn.parts["train"]
    other = replace(drawn, parts={**drawn.parts, "train": replace(train_part, images=train_part.images[::-1])})
    pack(other, "small", tmp_path / "other" / "demo" / "small")
    with pytest.raises(UserError, match=r"data fingerprint is .* and was"):
        go_on(run, data_dir=str(tmp_path / "other"))


def test_another_pipeline_is_named(run, monkeypatch):
    monkeypatch.setattr(resume, "engine", lambda backend: backends.engine(backend)[::-1])
    with pytest.raises(UserError, match=r"pipeline is .* and was"):
        go_on(run)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"data\.backend is dali and was cpu; pipeline is"):
        go_on(run, backend="dali")


def test_the_backend_that_auto_took_is_the_runs(data_dir, tmp_path, monkeypatch):
    """A GPU's `auto` depends on the data: what is saved, and compared on resuming, is what it took."""
    monkeypatch.setattr(build, "with_backend", lambda config, shards: config.override({"backend": "resident"}))
    whole = train(quick(data_dir, tmp_path / "whole")).path
    assert RunFolder(whole).config().data.backend == "resident"
    part = stopped(monkeypatch, quick(data_dir, tmp_path / "part"), *at_step(11))
    go_on(part)
    assert_same(part, whole)
    monkeypatch.setattr(build, "with_backend", lambda config, shards: config)
    with pytest.raises(UserError, match=r"data\.backend is cpu and was resident; pipeline is"):
        go_on(part)


def test_another_number_of_torch_threads_is_named(run):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(UserError, match=f"torch threads is {threads + 1} and was {threads}"):
            go_on(run)
    finally:
        torch.set_num_threads(threads)


def test_a_run_from_before_slices_is_resumed_where_a_batch_is_one_slice(run, monkeypatch):
    state = load_state(run / "checkpoints" / "last.pt")
    del state["facts"]["slices of a batch"]
    torch.save(state, run / "checkpoints" / "last.pt")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "slices_of", lambda *_: 2)
        with pytest.raises(UserError, match="slices of a batch is 2 and was 1"):
            go_on(run)
    go_on(run)


def test_another_kind_of_device_is_named(run):
    state = load_state(run / "checkpoints" / "last.pt")
    state["config"]["run"]["device"] = "cuda:1"
    torch.save(state, run / "checkpoints" / "last.pt")
    with pytest.raises(UserError, match="device is cpu and was cuda:1"):
        go_on(run)


def test_nested_settings_are_compared_and_named_as_the_command_line_names_them(run):
    result = invoke("--resume", run, "--set", "data.affine.shear=0.5", "--set", "training.ema=none", "--lr", 1)
    assert result.exit_code == 1
    assert (
        "change the result: --set data.affine.shear is 0.5 and was 0.2; --set training.ema is None and was 0.99; "
        "--lr is 1.0 and was 0.004; restore its settings, or add --resume-force."
    ) in result.output


def test_force_goes_on_and_says_so(run, whole, capsys):
    go_on(run, force=True, lr=1e-3)
    assert "Resuming with a different result: training.lr is 0.001 and was 0.004." in capsys.readouterr().out
    assert untimed(lines(RunFolder(run)))[0] == untimed(lines(RunFolder(whole)))[0]
    assert lines(RunFolder(run))[1]["loss"] != lines(RunFolder(whole))[1]["loss"]


def test_another_number_of_ranks_may_have_no_graph(run):
    state = load_state(run / "checkpoints" / "last.pt")
    config = config_module.from_dict(state["config"])
    state["config"] = config.override({"compile": "graph"}).to_dict()
    here = state["facts"] | {"code of the network": None, "augment": None, "own optimizer": None}
    resume.check(state, config, here | {"ranks": 2}, force=False)
    with pytest.raises(UserError, match=r"run\.compile is off and was graph"):
        resume.check(state, config, here, force=False)


def test_force_takes_another_precision(run):
    go_on(run, force=True, amp="fp16")


@pytest.mark.parametrize(
    ("name", "value", "was"), [("model", "test_vit", "test_efficientnet"), ("optimizer", "muon", "adamw")]
)
def test_even_with_force_weights_and_optimizer_stay_what_they_are(name, value, was, run):
    with pytest.raises(UserError, match=f"checkpoint's {name} is {was}, not {value}; start a new run"):
        go_on(run, force=True, **{name: value})


def test_force_takes_the_weight_decay_that_is_asked_for(run, monkeypatch):
    decays = []
    monkeypatch.setattr(
        Session,
        "train",
        lambda session, **_: decays.extend(g["weight_decay"] for g in session.trainer.optimizer.param_groups),
    )
    go_on(run, force=True, weight_decay=0.5)
    assert sorted(decays) == [0, 0.5]


def test_data_of_other_classes_do_not_fit(run, drawn, tmp_path):
    fewer = {
        name: Part(part.images[part.labels < 9], part.labels[part.labels < 9]) for name, part in drawn.parts.items()
    }
    pack(replace(drawn, classes=drawn.classes[:9], parts=fewer), "small", tmp_path / "data" / "demo" / "small")
    with pytest.raises(UserError, match="does not fit its model"):
        go_on(run, force=True, data_dir=str(tmp_path / "data"))


def test_more_epochs_of_warm_restarts_are_those_of_a_longer_run(data_dir, tmp_path):
    options = {"schedule": "restarts", "steps": None}
    run = train(quick(data_dir, tmp_path / "longer", epochs=1, **options))
    go_on(run.path, epochs=2)
    assert_same(run.path, train(quick(data_dir, tmp_path / "long", epochs=2, **options)).path)
    with pytest.raises(UserError, match="epochs is 1 and was 2"):
        go_on(run.path, epochs=1)


def test_settings_that_change_nothing_are_free(run, whole, data_dir, tmp_path, capsys):
    data = shutil.copytree(data_dir, tmp_path / "data")
    moved = run.rename(tmp_path / "moved")
    go_on(moved, data_dir=str(data), keep=2, checkpoint_every="600s", profile=True, verify_data=True)
    assert_same(moved, whole)
    config = RunFolder(moved).config()
    assert (config.data.data_dir, config.run.out, config.run.keep) == (str(data), str(moved), 2)
    assert "all hashes match" in capsys.readouterr().out


def test_the_environment_tells_of_each_time(data_dir, tmp_path, monkeypatch):
    path = stopped(monkeypatch, quick(data_dir, tmp_path / "run", epochs=1), *at_step(2))
    first = read_json(path / "env.json")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_test", lambda session: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go_on(path)
    go_on(path)
    env = read_json(path / "env.json")
    assert [(again["step"], again["test_was_read"]) for again in env["resumed"]] == [(2, False), (9, False)]
    assert {name: env[name] for name in first} == first


def test_a_longer_run_tells_that_the_test_was_read(data_dir, tmp_path):
    run = train(quick(data_dir, tmp_path / "run", epochs=1, schedule="restarts"))
    go_on(run.path, epochs=2)
    assert read_json(run.path / "env.json")["resumed"][0]["test_was_read"]
    assert [line["kind"] for line in lines(run)] == ["epoch", "epoch", "test", "unseen"]


def test_pretrained_weights_are_asked_for_once(data_dir, tmp_path, monkeypatch):
    asked = []

    def from_hub(model, options):
        asked.append(model.model)
        return timm.create_model(model.model, **options)

    monkeypatch.setattr("emnist_dali.models.build._from_hub", from_hub)
    config = quick(data_dir, tmp_path / "run", epochs=1, pretrained=True)
    path = stopped(monkeypatch, config, *at_step(2))
    go_on(path)
    assert asked == ["test_efficientnet"]
    assert RunFolder(path).config().model == config_module.Model(model="test_efficientnet", pretrained=True)


def test_wandb_goes_on_with_the_same_run(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = stopped(monkeypatch, quick(data_dir, tmp_path / "run", epochs=1, wandb="offline"), *at_step(2))
    before = load_state(path / "checkpoints" / "last.pt")["trackers"]["wandb"]
    go_on(path)
    assert before
    assert load_state(path / "checkpoints" / "last.pt")["trackers"]["wandb"] == before
    files = list(path.glob("wandb/offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{before}.wandb"}


def test_a_wandb_that_does_not_start_blocks_no_folder(data_dir, tmp_path, monkeypatch):
    import wandb

    def no_account(**_):
        raise wandb.errors.UsageError("no API key")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", no_account)
        with pytest.raises(UserError, match="no API key"):
            train(quick(data_dir, tmp_path / "run", epochs=1, wandb="online"))
    train(quick(data_dir, tmp_path / "run", epochs=1, steps=1))
