"""Shards that are damaged, deleted or replaced, before and during a run."""

import os
import re
import shutil

import pytest
from safetensors import safe_open

from emnist_dali.core.errors import UserError
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.loading import sampling
from emnist_dali.runs.folder import RunFolder
from emnist_dali.training.session import Session, train

from ..training_runs import go_on, kept, lines, quick

backends = pytest.mark.parametrize("backend", ["cpu", "dali", "resident"])


@pytest.fixture
def data(data_dir, folder, tmp_path):
    """A copy of the data with cached statistics."""
    statistics(folder, 16)
    return shutil.copytree(data_dir, tmp_path / "data")


@pytest.fixture
def shard(data):
    return data / "demo" / "small" / "train-00000.safetensors"


def first_byte(shard, record: int) -> int:
    """Position of a record in its file."""
    content = shard.read_bytes()
    with safe_open(shard, framework="np") as tensors:
        offsets, records = tensors.get_tensor("offsets"), tensors.get_tensor("records")
    start = content.index(records.tobytes())
    return start + int(offsets[record])


def flip(shard, place: int, bits: int, silent: bool = False) -> None:
    """In place, so that a run that has mapped the file sees it; `silent` keeps the time, as a failing disk does."""
    before = shard.stat()
    with shard.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bits]))
    if silent:
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def record_of_batch(data, batch: int) -> int:
    """The first record of training batch `batch`."""
    shards = Shards(data / "demo" / "small", "train")
    members, _ = sampling.holdout(shards.labels(), 0.05, 0)
    return int(members[sampling.shuffled(len(members), range(64 * batch, 64 * batch + 1), 0, batch // 9)][0])


@backends
def test_a_record_that_does_not_decode_stops_the_run_and_is_named(backend, data, shard, tmp_path):
    record = record_of_batch(data, 5)
    place = first_byte(shard, record)
    flip(shard, place, shard.read_bytes()[place] ^ 0xFF, silent=True)  # a token that claims more bytes than there are
    with pytest.raises(UserError, match=rf"train-00000\.safetensors: record {record} does not decode"):
        train(quick(data, tmp_path / "run", backend=backend, checkpoint_every="2"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not RunFolder(tmp_path / "run").best.exists()


@pytest.mark.parametrize("silent", [False, True])
def test_a_flip_that_decodes_is_detected_by_its_hash(silent, data, shard, tmp_path):
    labels = shard.read_bytes().rindex(Shards(shard.parent, "train").labels().tobytes())
    flip(shard, labels, 1, silent)
    with pytest.raises(UserError, match=r"train-00000\.safetensors is not the shard that was packed"):
        train(quick(data, tmp_path / "run", verify_data=silent))
    assert not (tmp_path / "run").exists()


def during_run(change, monkeypatch, path):
    """Calls `change()` at step 5 of 18; the list gets the files of the run after its first epoch."""
    real, held = Session._after_step, []

    def after_step(session):
        if session.trainer.step == 5:
            change()
        real(session)

    def epoch(session):
        if session.trainer.epoch == 1:
            held.append(kept(path))
        real_epoch(session)

    real_epoch = Session._epoch
    monkeypatch.setattr(Session, "_after_step", after_step)
    monkeypatch.setattr(Session, "_epoch", epoch)
    return held


CHANGES = {
    "flipped": (lambda shard, other: flip(shard, shard.stat().st_size - 1, 1), "was changed while in use"),
    "missing": (lambda shard, other: shard.unlink(), "was deleted while in use"),
    "replaced": (lambda shard, other: shutil.copy(other, shard.with_name("x")).replace(shard), "was changed"),
}


@backends
@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_during_a_run_ends_it_before_the_next_epoch(
    change, backend, data, shard, folder, tmp_path, monkeypatch
):
    act, message = CHANGES[change]
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        held = during_run(lambda: act(shard, folder / "test-00000.safetensors"), patch, path)
        # Validation also reads the train shards, and starts with the same check.
        with pytest.raises(UserError, match=rf"train-00000\.safetensors {message}"):
            train(quick(data, path, backend=backend, checkpoint_every="3"))
    assert not held
    assert not RunFolder(path).best.exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_run_does_not_start_or_resume_with_a_damaged_shard(damage, data, shard, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Session, "train", lambda session, resumed: None)
        path = train(quick(data, tmp_path / "run")).path
    before = kept(path)
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    for start in (lambda: go_on(path), lambda: train(quick(data, tmp_path / "other"))):
        with pytest.raises(UserError, match=rf"{re.escape(str(shard))} (has|is missing)"):
            start()
    assert kept(path) == before
    assert not (tmp_path / "other").exists()


def test_data_replaced_before_the_test_are_not_tested_on(data, drawn, tmp_path, monkeypatch):
    real = Session._test

    def test(session):
        pack(drawn, "small", data / "demo" / "small", "raw")
        real(session)

    monkeypatch.setattr(Session, "_test", test)
    with pytest.raises(UserError, match="was changed while in use"):
        train(quick(data, tmp_path / "run", epochs=1))
    assert [line["kind"] for line in lines(RunFolder(tmp_path / "run"))] == ["epoch"]
