"""Several ranks on this machine's CPU, over gloo; if permitted also on two machines simulated by namespaces."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emnist_dali import recipes
from emnist_dali.core import distributed
from emnist_dali.core.errors import UserError
from emnist_dali.data.pack import pack
from emnist_dali.data.sources import Part
from emnist_dali.runs.checkpoint import load_state
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runtime import resolve

from ..rank_jobs import SECONDS, Job, Rank, checks, command
from ..training_runs import flags, untimed

PEER_EXITED = "stopped because another rank exited first"
# Sums over slices round differently: after 50 steps the weights differ by 0.8 to 1.7 · 10⁻⁵ of their norm.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def seen(data_dir, tmp_path_factory) -> dict[int, list[dict]]:
    """The results of `checks` on every rank, by the number of ranks."""
    folder = tmp_path_factory.mktemp("checks")
    results = {}
    for world in (1, 2, 4):
        ended = Job(folder / str(world), world, checks, data_dir).ended()
        assert [rank.code for rank in ended] == [0] * world, ended[-1].err
        results[world] = [rank.result for rank in ended]
    return results


@pytest.mark.parametrize(("backend", "world"), [("cpu", 2), ("cpu", 4), ("resident", 4), ("dali", 2)])
def test_ranks_together_have_the_batches_of_one(seen, backend, world):
    (one,), several = seen[1], seen[world]
    parts = [rank[backend]["batches"] for rank in several]
    assert {len(part) for part in parts} == {6}
    for (images, labels), *slices in zip(one[backend]["batches"], *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in slices]), images)
        assert torch.equal(torch.cat([part for _, part in slices]), labels)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_an_epoch_without_overlap_in_equal_steps(seen, world):
    for epoch in (0, 1):
        parts = [rank["cpu"]["samples"][epoch] for rank in seen[world]]
        assert [len(part) for part in parts] == [9] * world
        taken = np.concatenate([np.concatenate(part) for part in parts])
        assert len(np.unique(taken)) == len(taken) == 9 * 64


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("images", [108, 37, 3])
def test_evaluation_counts_each_image_once_on_all_ranks(seen, world, images):
    expected = seen[1][0]["evaluation"][images]
    assert expected["images"] == images
    assert len(np.flatnonzero(np.sum(expected["confusion"], 0))) > 1  # predictions differ
    for rank in seen[world]:
        found = rank["evaluation"][images]
        # The last digit of a probability depends on the slice.
        error = pytest.approx(found["calibration_error"], abs=1e-6)
        assert {**found, "calibration_error": error} == expected


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranks_train_to_the_weights_of_one(seen, world, accumulation):
    expected = seen[1][0]["steps"][accumulation]
    first, *others = [rank["steps"][accumulation] for rank in seen[world]]
    for which, state in enumerate(first):  # the weights and their averages
        assert distance(state, expected[which]) < TOLERANCE
        for other in others:
            assert_same(state, other[which])


def distance(state: dict, expected: dict) -> float:
    flat, reference = (torch.cat([t.flatten().float() for t in each.values()]) for each in (state, expected))
    return float((flat - reference).norm() / reference.norm())


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_are_reduced_once_a_step(seen, world):
    for rank in seen[world]:
        epoch = rank["epoch"]
        sent = dict.fromkeys(range(9), 0)
        for step, size in epoch["reduced"]:
            sent[step] += size
        assert sent == dict.fromkeys(range(9), epoch["gradients"])


@pytest.mark.parametrize("world", [2, 4])
def test_statistics_of_batchnorm_become_the_mean_of_the_ranks(seen, world):
    epochs = [rank["epoch"] for rank in seen[world]]
    for which in (0, 1):  # of the model and of the averaged model
        for name, after in epochs[0]["after"][which].items():
            before = torch.stack([epoch["before"][which][name] for epoch in epochs])
            torch.testing.assert_close(after, before.mean(0))
            assert not torch.equal(before[0], before[1])
            for epoch in epochs:
                assert torch.equal(epoch["after"][which][name], after)


def test_compiled_ranks_train_to_the_weights_of_eager_ones_and_compile_once(seen):
    for rank in seen[2]:
        found = rank["compiled"]
        compiled, later = found["graphs"]
        assert compiled > 0
        assert later == 0
        assert distance(found["on"], found["off"]) < TOLERANCE
        assert_same(found["on"], seen[2][0]["compiled"]["on"])


@pytest.mark.parametrize("world", [2, 4])
def test_images_are_mixed_within_a_ranks_slice(seen, world):
    for rank, found in enumerate(seen[world]):
        others = found["targets"].clone()
        others[..., rank] = 0
        assert others.max() < 0.01  # label smoothing


def test_synchronized_batchnorm_on_a_cpu_is_an_error():
    with pytest.raises(UserError, match=r"training\.sync_bn needs GPUs"):
        resolve(recipes.cpu("small").override({"device": "cpu", "sync_bn": True}))


def arguments(data_dir: Path | str, out: Path | str, *more: str) -> list[str]:
    """A run of 36 steps, 9 per epoch, with a checkpoint every 4."""
    given = {"split": "small", "source": "glyphs", "data-dir": data_dir, "recipe": "cpu", "device": "cpu", "out": out}
    given |= {"batch-size": 64, "epochs": 4, "checkpoint-every": 4, "keep": 1000}
    # At 32×32 the last layers see one pixel, whose normalization magnifies rounding errors.
    return ["train", *map(str, flags(image_size=64, **given)), *more]


def run(folder: Path, world: int, *words: str) -> list[Rank]:
    return Job(folder, world, command, *words).ended()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(data_dir, runs) -> tuple[Path, list[Rank]]:
    """An uninterrupted run of 2 ranks."""
    out = runs / "whole"
    ranks = run(runs / "whole.txt", 2, *arguments(data_dir, out))
    assert [rank.code for rank in ranks] == [0, 0], ranks[1].err
    return out, ranks


@pytest.fixture(scope="module")
def whole_gn(data_dir, runs) -> Path:
    """The same without BatchNorm."""
    out = runs / "gn"
    ranks = run(runs / "gn.txt", 2, *arguments(data_dir, out, "--model", "test_efficientnet_gn"))
    assert [rank.code for rank in ranks] == [0, 0], ranks[1].err
    return out


def lines(out: Path) -> list[dict]:
    return untimed(RunFolder(out).entries())


def final(out: Path) -> dict:
    return load_state(out / "checkpoints" / "last.pt")


def assert_same_end(out: Path, whole: Path) -> None:
    """Bit for bit: weights, averaged weights, each rank's buffers, and all metrics except times."""
    one, other = final(out), final(whole)
    for name in ("model", "ema"):
        assert_same(one[name], other[name])
    for rank, expected in zip(one["ranks"], other["ranks"], strict=True):
        for name in ("model", "trained"):
            assert_same(rank[name], expected[name])
    assert one["step"] == other["step"] == 36
    assert lines(out) == lines(whole)


def stopped(whole: Path, step: int, out: Path) -> Path:
    """The run as it was after its checkpoint of `step`."""
    (out / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "env.json", "metrics.jsonl"):
        shutil.copy(whole / name, out)
    shutil.copy(whole / "checkpoints" / f"step-{step:08d}.pt", out / "checkpoints" / "last.pt")
    return out


def test_only_rank_0_prints_and_writes(whole):
    out, (first, second) = whole
    said = first.out.splitlines()
    assert len(said) == len(set(said)) > 6
    assert sum(line.startswith("epoch ") for line in said) == 4
    assert not second.out + second.err
    assert [line["kind"] for line in lines(out)] == ["epoch"] * 4 + ["test", "unseen"]


def test_2_ranks_resume_bit_for_bit(whole, tmp_path):
    out = stopped(whole[0], 12, tmp_path / "run")  # 3 steps into the second epoch
    ranks = run(tmp_path / "txt", 2, "train", "--resume", str(out))
    assert [rank.code for rank in ranks] == [0, 0], ranks[1].err
    assert "now" not in ranks[0].out
    assert_same_end(out, whole[0])


@pytest.mark.parametrize("world", [1, 4])
def test_a_checkpoint_of_2_ranks_resumes_on_another_number(whole_gn, world, tmp_path):
    out = stopped(whole_gn, 12, tmp_path / "run")
    ranks = run(tmp_path / "txt", world, "train", "--resume", str(out))
    assert [rank.code for rank in ranks] == [0] * world, ranks[-1].err
    assert f"2 ranks before, {world} now" in ranks[0].out
    assert distance(final(out)["model"], final(whole_gn)["model"]) < TOLERANCE
    assert [line["step"] for line in lines(out)[:4]] == [9, 18, 27, 36]
    np.testing.assert_allclose(lines(out)[1]["loss"], lines(whole_gn)[1]["loss"], rtol=1e-4)


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_an_error(whole, tmp_path):
    out = stopped(whole[0], 12, tmp_path / "run")
    for rank in run(tmp_path / "txt", 3, "train", "--resume", str(out)):
        assert (rank.code, rank.err.count("\n")) == (1, 1)
        assert "A batch of 64 images does not divide by 3 ranks" in rank.err


def test_ranks_with_different_data_are_an_error(drawn, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "0")
    fewer = {name: Part(part.images[:-1], part.labels[:-1]) for name, part in drawn.parts.items()}
    pack(replace(drawn, parts=fewer), "small", tmp_path / "1" / "demo" / "small")
    for rank in run(tmp_path / "txt", 2, *arguments(tmp_path / "{rank}", tmp_path / "run")):
        assert (rank.code, rank.err.count("\n")) == (1, 1)
        assert "The ranks have different data" in rank.err


def test_an_error_on_one_rank_is_reported(data_dir, tmp_path):
    for rank in "01":
        shutil.copytree(data_dir, tmp_path / rank)
    shard = tmp_path / "1" / "demo" / "small" / "train-00000.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 4 : len(damaged) // 2] = b"\xff" * (len(damaged) // 2 - len(damaged) // 4)
    shard.write_bytes(damaged)
    first, second = run(tmp_path / "txt", 2, *arguments(tmp_path / "{rank}", tmp_path / "run"))
    assert (first.code, second.code) == (1, 1)
    assert f"Rank 0 {PEER_EXITED}" in first.err
    assert str(shard) in second.err
    assert "Traceback" not in first.err + second.err


@pytest.fixture
def nccl(monkeypatch) -> list[str]:
    """Rank 1 of 2 with a GPU, as far as the process knows: whether it destroys the group, or will exit at once."""
    done = []
    for name, value in (
        ("WORLD_SIZE", 2),
        ("RANK", 1),
        ("LOCAL_RANK", 1),
        ("MASTER_PORT", 1),
        ("MASTER_ADDR", "here"),
    ):
        monkeypatch.setenv(name, str(value))
    for name, value in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([[None]]))
    group = {"PrefixStore": None, "init_process_group": None, "is_initialized": True}
    for name, value in group.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value, **options: value)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("destroyed"))
    monkeypatch.setattr(distributed.atexit, "register", lambda function: done.append(function.__name__))
    return done


def backend_error(text: str) -> RuntimeError:
    return type("DistBackendError", (type("DistError", (RuntimeError,), {}),), {})(text)


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (KeyError("shard"), KeyError, "shard"),
        (UserError("No space is left."), UserError, "No space is left."),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "CUDA out of memory"),
        (backend_error("CUDA out of memory"), RuntimeError, "CUDA out of memory"),
        (RuntimeError("Connection closed by peer"), UserError, f"Rank 1 {PEER_EXITED}"),
        (backend_error("ncclRemoteError: a remote process exited"), UserError, f"Rank 1 {PEER_EXITED}"),
        (
            backend_error("NCCL error, Last error:\nError in /dev/shm"),
            UserError,
            "NCCL fails on rank 1 (Error in /dev/shm)",
        ),
    ],
)
def test_a_rank_that_fails_does_not_wait_for_the_others(error, raised, words, nccl):
    with pytest.raises(raised) as caught, distributed.process_group():
        raise error
    assert words in str(caught.value)
    assert nccl == ["_exit_at_once"]


def test_ranks_that_end_together_leave_the_group(nccl):
    with distributed.process_group():
        assert distributed.rank() == 1
    with pytest.raises(SystemExit), distributed.process_group():
        sys.exit(143)
    assert nccl == ["destroyed", "destroyed"]


# From here on, with torchrun itself.


@contextmanager
def torchrun(folder: Path, *words: str, before: tuple[str, ...] = (), **place) -> Iterator[subprocess.Popen]:
    """torchrun with these arguments; its output goes to out.txt and err.txt in `folder`."""
    folder.mkdir(exist_ok=True)
    start = [*before, sys.executable, "-m", "torch.distributed.run"]
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **place.pop("env", {})}
        job = subprocess.Popen([*start, *words], stdout=out, stderr=err, env=environment, **place)
    try:
        yield job
    finally:
        if job.poll() is None:  # a test has failed; torchrun ends its ranks
            job.terminate()
            job.wait(SECONDS)


def on_two(*words: str) -> list[str]:
    return ["--standalone", "--nproc-per-node", "2", *words, "-m", "emnist_dali"]


def wait_for(condition: Callable[[], bool], job: subprocess.Popen) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert job.poll() is None, "torchrun has ended"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def worker(job: subprocess.Popen, rank: int) -> int:
    """The process id of a rank."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            parent = int((environ.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == job.pid and f"RANK={rank}".encode() in environ.read_bytes().split(b"\0"):
                return int(environ.parent.name)
        except OSError:  # it has exited, or belongs to another user
            continue
    raise AssertionError(f"no rank {rank}")


def reached(out: Path, step: int) -> Callable[[], bool]:
    return (out / "checkpoints" / f"step-{step:08d}.pt").exists


def test_a_killed_rank_ends_the_job(data_dir, tmp_path):
    out = tmp_path / "run"
    with torchrun(tmp_path, *on_two(), *arguments(data_dir, out)) as job:
        wait_for(reached(out, 8), job)
        os.kill(worker(job, 1), signal.SIGKILL)
        assert job.wait(30) != 0
    said = (tmp_path / "err.txt").read_text()
    assert said.count(f"Rank 0 {PEER_EXITED}") == 1
    assert final(out)["step"] < 36


def test_torchrun_restarts_a_killed_rank_from_the_last_checkpoint(data_dir, whole, tmp_path):
    out = tmp_path / "run"
    words = [*on_two("--max-restarts", "1"), *arguments(data_dir, out, "--resume", "auto")]
    with torchrun(tmp_path, *words) as job:
        wait_for(reached(out, 12), job)
        os.kill(worker(job, 1), signal.SIGKILL)
        assert job.wait(SECONDS) == 0
    said = (tmp_path / "out.txt").read_text()
    assert said.count("Training test_efficientnet") == said.count("Resuming test_efficientnet") == 1
    assert_same_end(out, whole[0])


def test_sigterm_saves_all_ranks_at_one_step(data_dir, whole, tmp_path):
    out = tmp_path / "run"
    with torchrun(tmp_path, *on_two(), *arguments(data_dir, out)) as job:
        wait_for(reached(out, 12), job)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) != 0
    step = final(out)["step"]
    assert 12 <= step < 36
    assert (tmp_path / "out.txt").read_text().count(f"Ended by SIGTERM after step {step};") == 1
    ranks = run(tmp_path / "txt", 2, "train", "--resume", str(out))
    assert [rank.code for rank in ranks] == [0, 0], ranks[1].err
    assert_same_end(out, whole[0])


@pytest.fixture
def machines() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces with a cable between them: the name, the address and the interface of each."""
    names = [f"emnist-{os.getpid()}-{i}" for i in range(2)]
    ends = [f"em{os.getpid()}v{i}" for i in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(name, f"10.77.0.{i + 1}", end) for i, (name, end) in enumerate(zip(names, ends, strict=True))]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_machines_train_together(machines, data_dir, whole, tmp_path):
    """Each has its own working folder and data; the first writes the run."""
    jobs = []
    for i, (name, address, interface) in enumerate(machines):
        home = tmp_path / str(i)
        shutil.copytree(data_dir, home / "data")
        words = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(i), "--local-addr", address]
        words += ["--rdzv-id", "emnist", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{machines[0][1]}:29400"]
        # torchrun recognizes its machine by host name, which is the same for both here.
        words += ["--rdzv-conf", f"is_host={1 - i}", "-m", "emnist_dali", *arguments("data", "run")]
        place = {"cwd": home, "env": {"GLOO_SOCKET_IFNAME": interface}}
        jobs.append(torchrun(home, *words, before=("ip", "netns", "exec", name), **place))
    with jobs[0] as one, jobs[1] as other:
        assert [job.wait(SECONDS) for job in (one, other)] == [0, 0], (tmp_path / "0" / "err.txt").read_text()
    assert_same_end(tmp_path / "0" / "run", whole[0])
    assert not (tmp_path / "1" / "run").exists()
    assert not (tmp_path / "1" / "out.txt").read_text()
