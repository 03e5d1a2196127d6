"""SIGTERM and SIGINT from outside."""

import os
import signal
import subprocess
import sys
from time import perf_counter

import pytest

from emnist_dali.runs.checkpoint import load_state
from emnist_dali.runs.file_names import is_run
from emnist_dali.training.session import train

from ..training_runs import assert_same, go_on, quick
from .processes import ended, start, training

SECONDS = 10
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")


def test_sigterm_ends_the_command_with_a_checkpoint(data_dir, tmp_path):
    out = tmp_path / "run"
    command = [str(part) for part in training(data_dir, "--epochs", 3, "--out", out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "emnist_dali", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            break
    process.send_signal(signal.SIGTERM)
    began = perf_counter()
    said, errors = process.communicate(timeout=60)
    assert perf_counter() - began < SECONDS
    assert process.returncode == 128 + signal.SIGTERM, errors
    step = load_state(out / "checkpoints" / "last.pt")["step"]
    assert 9 <= step < 27
    ending = f"Ended by SIGTERM after step {step}; resume with `emnist-dali train --resume {out}`."
    assert said.splitlines()[-1] == ending
    assert "a second signal exits at once" in errors
    assert "Traceback" not in errors
    go_on(out)
    assert_same(out, train(quick(data_dir, tmp_path / "whole", epochs=3)).path)


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "said"
    os.mkfifo(path)
    return path


def test_so_does_sigint(data_dir, tmp_path, fifo):
    process = start(fifo, *training(data_dir, "--epochs", 3, "--out", tmp_path / "run"))
    with fifo.open() as said:
        for line in said:
            if line.startswith("epoch 1/3"):
                break
        os.kill(process.pid, signal.SIGINT)
        began = perf_counter()
        rest = said.read()
    assert ended(process) == 128 + signal.SIGINT
    assert perf_counter() - began < SECONDS
    assert "Ended by SIGINT after step" in rest
    assert "Traceback" not in rest


def test_a_second_signal_ends_a_long_step_at_once(data_dir, tmp_path, fifo):
    """A step of a thousand images of 256×256 takes half a minute and more; the signals fall into it or before it."""
    options = ("--batch-size", 512, "--image-size", 256, "--out", tmp_path / "run")
    process = start(fifo, *training(data_dir, *options))
    with fifo.open() as said:
        for line in said:
            if line.startswith("Training"):
                break
        os.kill(process.pid, signal.SIGINT)
        for line in said:
            if "a second signal exits at once" in line:
                break
        os.kill(process.pid, signal.SIGTERM)
        began = perf_counter()
        rest = said.read()
    assert ended(process) == 128 + signal.SIGTERM
    assert perf_counter() - began < SECONDS
    assert "Ended by" not in rest
    assert is_run(tmp_path / "run")
    assert load_state(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 0
