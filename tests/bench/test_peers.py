"""The peers of bench/throughput.py make correct batches."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import peer_jobs
import plot
import stage_timers
from emnist_dali import recipes
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.runtime import resolve
from peers import PEERS, Peer
from peers.process import Process
from peers.work import Batch, Missing, Stream, Work, check

from ..training_runs import TINY

BATCH = 96
RESIDENT = "device-resident"
# Their shuffling reaches into the next epoch, or an image may come twice.
WINDOWED = ("DALI webdataset, PNG", "DALI dynamic mode, PNG", "WebDataset", "LitData", "MosaicML Streaming")


@pytest.fixture(scope="module", params=[False, True], ids=["as they are", "warped"])
def work(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """384 images, some drawn, some random, some of a single grey level: 4 batches an epoch."""
    scratch, shards = tmp_path_factory.mktemp("peers"), Shards(folder, "train")
    rng = np.random.default_rng(0)
    flat = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None] * 85, (4, 28, 28))
    drawn = shards.images(np.arange(280))
    np.save(scratch / "images.npy", np.concatenate([drawn, rng.integers(0, 256, (100, 28, 28), np.uint8), flat]))
    return Work(
        name="",
        folder=scratch,
        shards=folder,
        size=32,
        mean=0.2,
        std=0.3,
        batch_size=BATCH,
        device="cpu",
        half=False,
        threads=2,
        affine=asdict(recipes.cpu("balanced").data.affine) if request.param else None,
    )


def assert_correct(batches: Iterator[Batch], name: str, work: Work) -> None:
    """Checks five batches: the four of an epoch and the next."""
    seen = []
    for batch in batches:
        assert (batch.images.shape, batch.images.dtype) == ((BATCH, 1, 32, 32), torch.float32)
        assert (batch.indices.shape, batch.indices.dtype) == ((BATCH,), torch.int64)
        assert check(batch, work) <= 1
        seen.append(batch.indices.tolist())
        if len(seen) == 5:
            break
    assert all(len(set(indices)) == BATCH for indices in seen) or name == "WebDataset"
    assert seen[0] != sorted(seen[0])
    if name not in WINDOWED:
        assert sorted(np.concatenate(seen[:4])) == list(range(len(work.images)))
        assert seen[4] != seen[0]


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.environment])
def test_images_and_indices(name: str, work: Work) -> None:
    peer, work = PEERS[name], replace(work, name=name)
    module = import_module(f"peers.{peer.module}")
    if hasattr(module, "write") and not work.own.exists():
        module.write(work, **peer.options)
    try:
        stream: Stream = module.stream(work, **peer.options)
    except Missing as reason:
        pytest.skip(str(reason))
    planned = stream.planned or (lambda batch: batch)
    assert_correct(map(planned, stream.batches), name, work)


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.environment])
def test_those_with_an_environment_of_their_own(name: str, work: Work) -> None:
    try:
        process = Process(PEERS[name], replace(work, name=name.replace(" ", "-")))
    except Missing as reason:
        pytest.skip(str(reason))
    with closing(process):
        assert_correct(iter(process.batch, None), name, work)


def test_check_sees_wrong_images_indices_and_warps(work: Work) -> None:
    batch = next(import_module("peers.resident").stream(work, equalize_once=False).batches)
    assert check(batch._replace(indices=batch.indices.roll(1)), work) > 1
    if work.affine:
        assert check(batch._replace(matrices=work.matrices[batch.indices.roll(1)]), work) > 1
    images = batch.images.clone()
    images[17, 0, 5, 6] += 2 / 255 / work.std
    assert check(batch._replace(images=images), work) == pytest.approx(2, abs=0.01)
    images[17, 0, 5, 6] = torch.nan
    assert not check(batch._replace(images=images), work) <= 1


def test_a_process_that_fails_says_why(work: Work) -> None:
    with pytest.raises(Missing, match=r"bench/peers\.sh nowhere"):
        Process(Peer("resident", environment="nowhere"), work)
    with pytest.raises(RuntimeError, match="unexpected keyword argument 'colour'"):
        Process(Peer("resident", {"colour": "red"}), replace(work, name="wrong"))


def test_lines_of_code_are_without_docstrings_and_comments() -> None:
    assert peer_jobs.lines(PEERS[RESIDENT]) == 9


@pytest.fixture
def setup(folder: Path) -> stage_timers.Setup:
    config = resolve(recipes.cpu("small").override({**TINY, "batch_size": 64, "device": "cpu"}))
    shards = Shards(folder, "train")
    return stage_timers.Setup(
        config=config, shards=shards, stats=statistics(folder, 32), batch_size=64, threads=2, seconds=0.01
    )


def test_every_job_and_every_peer_is_in_the_document(setup: stage_timers.Setup, tmp_path, monkeypatch) -> None:
    names = {
        "emnist-dali": PEERS["emnist-dali"],
        "torchvision": PEERS["torchvision v2, batched"],
        "gone": Peer("resident", environment="nowhere"),
    }
    monkeypatch.setattr(peer_jobs, "PEERS", names)
    monkeypatch.setattr(peer_jobs, "PAIRS", 2)
    peers = peer_jobs.measure(setup, (32,), setup.config)
    assert peers.keys() == names.keys()
    jobs = {"32×32", "32×32, warped", "training"}
    assert all(peer["jobs"].keys() == jobs for peer in peers.values())
    ours = peers["emnist-dali"]
    assert (ours["resume"], ours["shuffle"]) == ("exact", "full")
    assert ours["disk_bytes"] > 0
    assert peers["torchvision"]["disk_bytes"] == 0
    for job in ("32×32", "32×32, warped"):
        result = ours["jobs"][job]
        assert result["off_by_levels"] <= 1
        assert result["low"] <= result["images_per_second"] <= result["high"]
        assert min(result["cpu_seconds"], result["memory"], result["first_batch_seconds"]) > 0
    assert len(ours["jobs"]["training"]["shares"]) == 2
    assert peers["torchvision"]["resume"] == "no"
    for job in ("32×32, warped", "training"):
        assert "one warp" in peers["torchvision"]["jobs"][job]["missing"]
    assert all("peers.sh nowhere" in result["missing"] for result in peers["gone"]["jobs"].values())
    document = {"stages": {}, "peers": peers, "batch_size": 64, "threads": 2, "config": setup.config.to_dict()}
    plot.draw(document | {"machine": {"gpu": None, "cpu": "a CPU"}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    table = peer_jobs.table(peers)
    for text in (*jobs, "torchvision draws one warp", "peers.sh nowhere", "exact"):
        assert text in table


def test_a_peer_that_makes_other_images_is_not_timed(setup: stage_timers.Setup, monkeypatch) -> None:
    monkeypatch.setattr(peer_jobs, "PEERS", {RESIDENT: PEERS[RESIDENT]})
    monkeypatch.setattr(peer_jobs, "check", lambda batch, work: np.nan)
    monkeypatch.setattr(peer_jobs, "_measure_training", lambda *_: None)
    setup = replace(setup, config=setup.config.override({"affine": None}))
    ((_, peer),) = peer_jobs.measure(setup, (32,), setup.config).items()
    assert "grey levels: not timed" in peer["jobs"]["32×32"]["failed"]
    assert "not timed" in peer_jobs.table({RESIDENT: peer})


def test_the_page_shows_the_record():
    project = Path(peer_jobs.__file__).parents[1]
    record = json.loads((project / "bench" / "records" / "throughput-cpu-2-cores.json").read_text())
    shown = [line.rstrip() for line in peer_jobs.table(record["peers"]).splitlines()]
    assert "\n".join(shown) in (project / "docs" / "loaders.md").read_text()
