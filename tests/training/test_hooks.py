"""What a user's own augmentation, optimizer, logger and callbacks get and change, alone and when a run is resumed."""

import pytest
import torch

from emnist_dali.core.errors import UserError
from emnist_dali.training.resume import find, load
from emnist_dali.training.session import train
from tests.training_runs import assert_same, at_step, go_on, kept, lines, quick, stopped


def noise(images: torch.Tensor) -> torch.Tensor:
    return images + 0.1 * torch.randn_like(images)


def sgd(groups: list[dict], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.5)


def resumed(path, **hooks):
    return train(*load(find(str(path), None), None, {}), **hooks)


def test_hooks_change_the_training_and_a_resumed_run_has_the_same(data_dir, tmp_path, monkeypatch):
    """One run to its end, and one that is stopped in its first epoch and resumed with the same hooks."""
    short = {"val_fraction": 0.0, "epochs": 1}
    whole = train(quick(data_dir, tmp_path / "whole", **short), augment=noise, optimizer=sgd)
    plain = train(quick(data_dir, tmp_path / "plain", **short), test=False)
    assert lines(whole)[0]["loss"] != lines(plain)[0]["loss"]

    config = quick(data_dir, tmp_path / "stopped", **short)
    hooked = lambda config: train(config, augment=noise, optimizer=sgd)  # noqa: E731
    monkeypatch.setattr("tests.training_runs.train", hooked)
    path = stopped(monkeypatch, config, *at_step(4))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"augment is None and was tests\.training\.test_hooks:noise"):
        go_on(path)
    with pytest.raises(UserError, match=r"own optimizer is None and was tests\.training\.test_hooks:sgd"):
        resumed(path, augment=noise)
    assert_same(resumed(path, augment=noise, optimizer=sgd).path, whole.path)


def test_what_callbacks_get(data_dir, tmp_path):
    entries, steps, epochs = [], [], []
    run = train(
        quick(data_dir, tmp_path / "run", epochs=2),
        log=entries.append,
        after_step=lambda trainer: steps.append((trainer.step, trainer.model.training)),
        after_epoch=lambda done, accuracy: epochs.append((done, accuracy)) or done == 1,
    )
    assert entries == lines(run)
    assert [entry["kind"] for entry in entries] == ["epoch", "test", "unseen"]  # ended after one of two
    assert epochs == [(entry["epochs_done"], entry["val_accuracy"]) for entry in entries[:1]]
    assert steps == [(step, True) for step in range(1, entries[0]["step"] + 1)]
    before = kept(run.path)
    go_on(run.path)
    assert kept(run.path) == before  # such a run is complete


def test_without_images_held_out_there_is_no_accuracy(data_dir, tmp_path):
    seen = []
    config = quick(data_dir, tmp_path / "run", val_fraction=0.0, epochs=1)
    train(config, test=False, after_epoch=lambda *got: seen.append(got))
    assert seen == [(1, None)]


def test_a_logger_may_take_its_entries_apart(data_dir, tmp_path):
    run = train(quick(data_dir, tmp_path / "run", epochs=1), log=dict.clear)
    assert [entry["kind"] for entry in lines(go_on(run.path))] == ["epoch", "test", "unseen"]


def test_an_augmentation_is_checked_at_each_batch(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"augment got \(64, 1, 16, 16\) torch.float32 and returned \(3, 1, 16, 16\)"):
        train(quick(data_dir, tmp_path / "run"), augment=lambda images: images[:3])


def test_an_optimizer_may_keep_what_it_likes(data_dir, tmp_path):
    """Adafactor's state has rows and columns, which have other shapes than the weights."""
    adafactor = {"optimizer": lambda groups, lr: torch.optim.Adafactor(groups, lr=lr)}
    run = train(quick(data_dir, tmp_path / "run", epochs=2), after_epoch=lambda *_: True, test=False, **adafactor)
    assert [entry["kind"] for entry in lines(resumed(run.path, **adafactor))] == ["epoch", "test", "unseen"]


def test_a_logger_gets_how_long_compiling_took(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    entries = []
    run = train(quick(data_dir, tmp_path / "run", steps=1, compile="on"), test=False, log=entries.append)
    assert [entry["kind"] for entry in entries] == ["compile", "epoch"]
    assert entries == lines(run)


def test_a_run_that_a_callback_ended_is_only_tested_when_it_is_resumed(data_dir, tmp_path):
    run = train(quick(data_dir, tmp_path / "run", epochs=2), test=False, after_epoch=lambda done, accuracy: True)
    assert [entry["kind"] for entry in lines(go_on(run.path))] == ["epoch", "test", "unseen"]


@pytest.mark.parametrize(
    ("hooks", "why"),
    [
        ({"augment": lambda images: images[:, :, 1:]}, r"augment got \(2, 1, 16, 16\) torch.float32 and returned"),
        ({"augment": lambda images: images.double()}, "torch.float64"),
        ({"augment": lambda images: None}, "NoneType"),
        ({"optimizer": lambda groups, lr: None}, "optimizer returned NoneType"),
    ],
)
def test_a_hook_that_returns_something_else_leaves_no_folder(data_dir, tmp_path, hooks, why):
    with pytest.raises(UserError, match=why):
        train(quick(data_dir, tmp_path / "run"), **hooks)
    assert not (tmp_path / "run").exists()


def test_what_a_callback_raises_ends_the_run(data_dir, tmp_path):
    def fail(trainer):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        train(quick(data_dir, tmp_path / "run"), after_step=fail)
