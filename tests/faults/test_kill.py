"""kill -9 at random moments of one training, which is then gone on with as if nothing had been."""

import os
import random
from pathlib import Path
from time import perf_counter

from emnist_dali.runs.checkpoint import load_state, load_weights
from emnist_dali.runs.file_names import is_run
from emnist_dali.runs.folder import RunFolder

from ..training_runs import assert_same, kept
from .processes import SECONDS, ended, start, training

KILLS = int(os.environ.get("EMNIST_DALI_KILLS", 5))
SEED = int(os.environ.get("EMNIST_DALI_KILL_SEED", random.randrange(2**32)))


def found(path: Path) -> int | None:
    """The step to go on from; None where there is no run yet. Every file of a run can be read."""
    if not is_run(path):
        return None
    run = RunFolder(path)
    run.config()
    if run.best.exists():
        load_weights(run.best)
    return load_state(run.last)["step"]


def test_a_training_killed_again_and_again_ends_as_if_it_had_not_been(data_dir, tmp_path):
    print(f"EMNIST_DALI_KILL_SEED={SEED}")
    draw = random.Random(SEED)

    def attempt(name: str):
        options = ("--epochs", max(2, KILLS // 5), "--checkpoint-every", 2, "--keep", 2, "--resume", "auto")
        return start(tmp_path / f"{name}.log", *training(data_dir, *options, "--out", tmp_path / name))

    began = perf_counter()
    assert ended(attempt("whole")) == 0
    whole = perf_counter() - began
    steps = load_state(tmp_path / "whole" / "checkpoints" / "last.pt")["step"]
    began = perf_counter()
    assert ended(attempt("whole")) == 0  # finds it complete: what starting costs
    longest = perf_counter() - began + whole / KILLS
    places, began = [], perf_counter()
    while len(places) < KILLS:
        process = attempt("killed")
        process.join(draw.uniform(0, longest))
        process.kill()
        process.join()
        assert process.exitcode in (0, -9), (tmp_path / "killed.log").read_text()[-2000:]
        if process.exitcode == 0:
            longest /= 1.2  # it came to its end before the kill
        else:
            step = found(tmp_path / "killed")
            places.append("no run" if step is None else step)
            # The last kill is to hit the training too, and the machine may be faster or slower by then.
            behind = (step or 0) < 0.9 * steps * len(places) / KILLS
            longest *= 1.2 if behind else 1 / 1.2
    print(f"{KILLS} kills in {perf_counter() - began:.0f} s, after which step {places} of {steps} was saved")
    assert ended(attempt("killed")) == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")
    left = {path.name for path in (tmp_path / "killed").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".tmp")]


def test_a_group_killed_in_its_second_run_keeps_the_first(data_dir, tmp_path):
    group, log = tmp_path / "group", tmp_path / "log"
    command = training(data_dir, "--epochs", 1, "--seeds", 2, "--out", group)
    process, began = start(log, *command), perf_counter()
    while not is_run(group / "seed-1") and process.is_alive() and perf_counter() - began < SECONDS:
        process.join(0.02)
    process.kill()
    process.join()
    assert is_run(group / "seed-1"), log.read_text()[-2000:]
    first = kept(group / "seed-0")
    assert ended(start(log, *command)) == 0
    assert kept(group / "seed-0") == first
    assert [entry["kind"] for entry in RunFolder(group / "seed-1").entries()] == ["epoch", "test", "unseen"]
