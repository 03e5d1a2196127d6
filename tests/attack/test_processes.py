"""Several processes at once, and processes that are killed or find no space: nothing is mixed, nothing is lost.

Each case is a command in a process of its own, forked from one that has loaded torch. `make test` tries a few of each
kind, `make attack` ATTACK_FACTOR times as many from other seeds.
"""

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from emnist_dali.core.locks import LOCK
from emnist_dali.data.manifest import read_manifest, verify
from emnist_dali.data.shards import Shards
from emnist_dali.runs.checkpoint import load_state, load_weights
from emnist_dali.runs.file_names import is_run
from emnist_dali.runs.folder import RunFolder

from ..data.test_prepare import write_split
from ..faults.processes import ended, start, training
from ..training_runs import assert_same, kept
from .tally import FACTOR, SEED, tried

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")

TRACEBACK = "Traceback (most recent call last)"


def draws(number: int) -> Iterator[random.Random]:
    """So many generators, the same on each run of `make test`."""
    for i in range(number * FACTOR):
        tried()
        yield random.Random(f"{SEED} {i}")


def finish(*processes) -> list[int]:
    return [ended(process) for process in processes]


def logs(folder: Path, names: range) -> list[str]:
    return [(folder / f"{name}.log").read_text() for name in names]


def prepared(folder: Path) -> str:
    """The fingerprint of whole data."""
    manifest = read_manifest(folder)
    verify(folder, manifest)
    for part in manifest.shards:
        Shards(folder, part)
    return manifest.fingerprint


# ---- at once


def test_trainings_that_start_at_once_have_folders_of_their_own(data_dir, tmp_path):
    for draw in draws(1):
        place = tmp_path / f"{draw.random()}"
        place.mkdir()
        names = range(3)
        jobs = [
            start(place / f"{name}.log", *training(data_dir, "--steps", 2, "--seed", name), cwd=place)
            for name in names
        ]
        assert finish(*jobs) == [0] * len(names), logs(place, names)
        runs = list((place / "runs").iterdir())
        assert len(runs) == len(names)
        assert {RunFolder(path).config().training.seed for path in runs} == set(names)
        for path in runs:
            assert [line["kind"] for line in RunFolder(path).entries()] == ["epoch", "test", "unseen"]


def test_a_run_has_one_writer(data_dir, tmp_path, monkeypatch):
    """While one process goes on with a run, others are told who does."""
    whole = start(tmp_path / "whole.log", *training(data_dir, "--epochs", 2, "--out", tmp_path / "whole"))
    assert ended(whole) == 0
    for draw in draws(1):
        path = tmp_path / f"{draw.random()}"
        words = training(data_dir, "--epochs", 2, "--out", path, "--resume", "auto", "--checkpoint-every", 1)
        jobs = [start(path.with_suffix(f".{i}"), *words) for i in range(4)]
        codes = finish(*jobs)
        said = [path.with_suffix(f".{i}").read_text() for i in range(4)]
        assert codes.count(0) >= 1, said
        for code, text in zip(codes, said, strict=True):
            assert TRACEBACK not in text
            if code:
                last = text.splitlines()[-1]
                assert "is in use by" in last or "was written anew" in last or "already contains a run" in last
        assert_same(path, tmp_path / "whole")
        holders = [text for text in said if "is in use by process" in text]
        assert all(str(path) in text for text in holders)


def test_prepares_that_start_at_once_pack_once(tmp_path):
    write_split(tmp_path / "source")
    for draw in draws(3):
        data = tmp_path / f"{draw.random()}"
        words = ("prepare", "--split", "digits", "--source", tmp_path / "source", "--data-dir", data)
        names = range(4)
        data.mkdir()
        assert finish(*[start(data / f"{name}.log", *words) for name in names]) == [0] * 4, logs(data, names)
        said = logs(data, names)
        assert sum("(packed)" in text for text in said) == 1, said
        assert not any(TRACEBACK in text for text in said)
        prepared(data / "digits")
        assert [path.name for path in data.iterdir() if path.is_dir()] == ["digits"]


def test_replacements_that_start_at_once_leave_one_of_them(tmp_path):
    """Two sources, --force, four processes: the folder is one of the two, whole, and readers never see a mix."""
    for name in ("one", "two"):
        write_split(tmp_path / name, seed=len(name) + ord(name[0]))
    expected = set()
    for draw in draws(2):
        data = tmp_path / f"{draw.random()}"
        data.mkdir()
        words = ("prepare", "--split", "digits", "--data-dir", data, "--force", "--source")
        jobs = [start(data / f"{i}.log", *words, tmp_path / ("one", "two")[i % 2]) for i in range(4)]
        assert finish(*jobs) == [0] * 4, logs(data, range(4))
        expected.add(prepared(data / "digits"))
        assert not any(TRACEBACK in text for text in logs(data, range(4)))
    assert len(expected) <= 2


# ---- killed


def test_a_prepare_that_is_killed_leaves_the_old_data_or_the_new(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        write_split(tmp_path / name, counts=(3000, 500), seed=seed)
    data = tmp_path / "data"
    words = ("prepare", "--split", "digits", "--data-dir", data, "--force", "--source")
    fingerprints = []
    for name in ("one", "two"):
        assert ended(start(tmp_path / "log", *words, tmp_path / name)) == 0
        fingerprints.append(prepared(data / "digits"))
    for i, draw in enumerate(draws(6)):
        job = start(tmp_path / "log", *words, tmp_path / ("one", "two")[i % 2])
        job.join(draw.uniform(0, 0.3))
        job.kill()
        job.join()
        assert ended(start(tmp_path / "log", "prepare", "--split", "digits", "--data-dir", data)) == 0
        assert prepared(data / "digits") in fingerprints
    assert TRACEBACK not in (tmp_path / "log").read_text()
    assert ended(start(tmp_path / "log", *words, tmp_path / "one")) == 0
    assert [path.name for path in data.iterdir() if not path.name.endswith(LOCK)] == ["digits"]


def test_a_killed_holder_releases_its_run(data_dir, tmp_path):
    path = tmp_path / "run"
    words = training(data_dir, "--epochs", 50, "--out", path, "--resume", "auto", "--checkpoint-every", 1)
    job = start(tmp_path / "log", *words)
    while not is_run(path):
        assert job.is_alive(), (tmp_path / "log").read_text()
        job.join(0.05)
    job.kill()
    job.join()
    step = load_state(path / "checkpoints" / "last.pt")["step"]
    assert ended(start(tmp_path / "log", "train", "--resume", path, "--epochs", 1, "--resume-force")) == 0
    assert step <= load_state(path / "checkpoints" / "last.pt")["step"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_ranks_end_with_their_torchrun(data_dir, tmp_path):
    """kill -9 of torchrun reaches no rank: without more they would train on beside whoever goes on with the run."""
    words = [str(word) for word in training(data_dir, "--epochs", 500, "--out", tmp_path / "run")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "emnist_dali", *words]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not is_run(tmp_path / "run"):
        assert job.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        with suppress(subprocess.TimeoutExpired):
            job.wait(0.2)
    ranks = [os.pidfd_open(pid) for pid in _children(job.pid)]
    assert len(ranks) == 2
    job.kill()
    job.wait()
    for rank in ranks:
        assert select.select([rank], [], [], 60)[0], "a rank trains on"
        os.close(rank)
    state = load_state(tmp_path / "run" / "checkpoints" / "last.pt")
    with RunFolder(tmp_path / "run") as run:
        run.lock()  # nobody holds it any more
    assert state["step"] >= 0


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


# ---- no space


def test_a_disk_that_is_full_at_any_byte_costs_nothing_that_was_there(data_dir, trained_run, tmp_path):
    """RLIMIT_FSIZE in the place of a full disk, at a size that is drawn, for every command that writes."""
    write_split(tmp_path / "source", seed=1)
    write_split(tmp_path / "other", seed=2)
    for draw in draws(8):
        place = tmp_path / f"{draw.random()}"
        place.mkdir()
        run = shutil.copytree(trained_run, place / "run")
        (place / "data").mkdir()
        prepare = ("prepare", "--split", "digits", "--data-dir", place / "data", "--source")
        assert ended(start(place / "log", *prepare, tmp_path / "source")) == 0
        fingerprint, before = prepared(place / "data" / "digits"), kept(run)
        command = draw.choice(
            [
                (*prepare, tmp_path / "other", "--force"),
                training(data_dir, "--steps", 3, "--checkpoint-every", 1, "--out", place / "new"),
                ("train", "--resume", run, "--epochs", 9, "--resume-force"),
                ("report", run),
                ("export", run, "--format", "safetensors"),
                (
                    "inspect",
                    "--split",
                    "small",
                    "--source",
                    "glyphs",
                    "--data-dir",
                    data_dir,
                    "--out",
                    place / "x.html",
                ),
            ]
        )
        free = int(10 ** draw.uniform(0, 6.7))
        job = start(place / "said", *command, cwd=place, file_bytes=free)
        code = ended(job)
        said = (place / "said").read_text(errors="replace") if free > 20_000 else ""
        assert code in (0, 1), (command, free, code, said)
        assert TRACEBACK not in said, (command, free, said)
        if command[0] == "prepare" and code:
            assert prepared(place / "data" / "digits") == fingerprint
        load_weights(run / "checkpoints" / "best.safetensors")
        load_state(run / "checkpoints" / "last.pt")
        RunFolder(run).entries()
        RunFolder(run).config()
        if command[0] != "train":
            assert {name: kept(run).get(name) for name in before} == before
        left = [path for path in place.rglob("*") if path.name.endswith("emnist-dali-tmp")]
        assert not left, (command, free, left)


# ---- a mapped file that is cut


@pytest.mark.parametrize("backend", ["cpu", "dali", "resident"])
def test_a_shard_that_is_cut_under_a_run_is_a_sentence(backend, data_dir, tmp_path):
    data = shutil.copytree(data_dir, tmp_path / "data")
    shard = data / "demo" / "small" / "train-00000.safetensors"
    job = start(tmp_path / "log", *training(data, "--epochs", 200, "--backend", backend, "--out", tmp_path / "run"))
    deadline = time.monotonic() + 100
    while not is_run(tmp_path / "run"):
        assert job.is_alive(), (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        job.join(0.05)
    os.truncate(shard, 4096)
    assert ended(job) == 1
    said = (tmp_path / "log").read_text()
    assert TRACEBACK not in said
    assert str(shard) in said.strip().splitlines()[-1], said
    load_state(tmp_path / "run" / "checkpoints" / "last.pt")


def test_a_terminal_that_is_gone_leaves_a_checkpoint(data_dir, tmp_path):
    path, words = tmp_path / "run", training(data_dir, "--epochs", 3)
    job = start(tmp_path / "log", *words, "--out", path)
    while not is_run(path):
        assert job.is_alive(), (tmp_path / "log").read_text()
        job.join(0.05)
    os.kill(job.pid, signal.SIGHUP)
    assert ended(job) in (0, 128 + signal.SIGHUP)
    assert load_state(path / "checkpoints" / "last.pt")["step"] > 0
    others = (
        start(tmp_path / "log", "train", "--resume", path),
        start(tmp_path / "log2", *words, "--out", tmp_path / "w"),
    )
    assert finish(*others) == [0, 0]
    assert_same(path, tmp_path / "w")
