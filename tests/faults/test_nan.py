"""A training that diverges: nothing that is not finite reaches a checkpoint, and the way out works."""

import re
import shlex

import pytest
import torch
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.runs.checkpoint import load_state, load_weights
from emnist_dali.runs.folder import RunFolder
from emnist_dali.training.session import train
from emnist_dali.training.trainer import Trainer

from ..training_runs import kept, lines, quick, signalled

WAY_OUT = re.compile(r"`emnist-dali (train --resume \S+ --resume-force --lr \S+)` resumes from there\.$")


def poisoned(patch: pytest.MonkeyPatch, step: int) -> None:
    """A weight is no number after `step` steps."""
    real = Trainer._average

    def average(trainer: Trainer) -> None:
        real(trainer)
        if trainer.step == step:
            next(trainer.model.parameters()).data.view(-1)[0] = torch.nan

    patch.setattr(Trainer, "_average", average)


@pytest.mark.parametrize(
    ("step", "checked", "last"),
    [
        (11, 12, 10),  # a checkpoint at the next step
        (18, 18, 16),  # the last update of an epoch: no loss comes after it
        (9, 9, 8),  # and of the first epoch, where any score is the best
    ],
)
def test_a_weight_that_is_no_number_reaches_no_file(step, checked, last, data_dir, tmp_path, monkeypatch):
    path = tmp_path / "run"
    held = []
    real = RunFolder.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", lambda *a, **k: (real(*a, **k), held.append(kept(path)))[0])
        poisoned(patch, step)
        with pytest.raises(UserError, match=rf"not finite at step {checked}") as caught:
            train(quick(data_dir, path, checkpoint_every="2", val_fraction=0.05))
    assert kept(path) == held[-1]
    run = RunFolder(path)
    assert load_state(run.last)["step"] == last
    assert run.best.exists() == (step > 9)
    tensors = load_weights(run.best)[0].values() if run.best.exists() else []
    assert all(tensor.isfinite().all() for tensor in tensors)
    command = WAY_OUT.search(str(caught.value))
    assert command, caught.value
    assert f"{run.last} is from before" in str(caught.value)
    if step == 11:
        result = CliRunner().invoke(main, shlex.split(command[1]))
        assert result.exit_code == 0, result.output
        assert "Resuming with a different result: training.lr is 0.001 and was 0.004." in result.output
        assert [line["kind"] for line in lines(run)] == ["epoch", "epoch", "test", "unseen"]


def test_a_run_that_is_stopped_with_such_a_weight_says_how_to_resume(data_dir, tmp_path, monkeypatch):
    """SIGTERM right after the update that spoils it: the checkpoint that would hold it is not written."""
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        poisoned(patch, 11)
        signalled(patch, "_after_step", lambda session: session.trainer.step == 11)
        with pytest.raises(UserError, match="not finite at step 11") as caught:
            train(quick(data_dir, run.path, checkpoint_every="5"))
    assert load_state(run.last)["step"] == 10
    assert WAY_OUT.search(str(caught.value)), caught.value


def test_a_rate_that_is_far_too_high_stops_the_run(data_dir, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(UserError, match=r"lower training\.lr.*--lr 3e\+29` resumes") as caught:
        train(quick(data_dir, path, lr=1e30, optimizer="sgd", checkpoint_every="1"))
    assert re.search(r"step \d+", str(caught.value))
    state = load_state(path / "checkpoints" / "last.pt")
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert not RunFolder(path).best.exists()
