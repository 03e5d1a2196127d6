"""A full disk, simulated with RLIMIT_FSIZE: writes beyond it fail with EFBIG instead of ENOSPC."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from emnist_dali.core.errors import UserError
from emnist_dali.data.manifest import read_manifest, verify
from emnist_dali.data.pack import pack
from emnist_dali.data.prepare import prepare
from emnist_dali.data.stats import statistics
from emnist_dali.runs import folder as run_folder_module
from emnist_dali.runs.folder import RunFolder
from emnist_dali.training import session as train_module
from emnist_dali.training.session import Session, train
from emnist_dali.training.trainer import Trainer

from ..training_runs import assert_same, go_on, kept, quick

resource = pytest.importorskip("resource")


@contextmanager
def full_disk(free: int = 100):
    """No file can exceed `free` bytes; pytest itself must not write inside the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    return train(quick(data_dir, tmp_path_factory.mktemp("whole") / "run", epochs=1)).path


def fails(patch, place, name, path, nth):
    """The disk is full during the nth call of `place.name`; the list gets the files of the run before it."""
    real, calls, before = getattr(place, name), [], []

    def function(*arguments, **options):
        calls.append(name)
        if len(calls) != nth:
            return real(*arguments, **options)
        before.append(kept(path))
        with full_disk():
            return real(*arguments, **options)

    patch.setattr(place, name, function)
    return before


WRITES = {
    "checkpoints/last.pt": (RunFolder, "save_checkpoint", 3),
    "checkpoints/best.safetensors": (train_module, "save_weights", 1),
    "metrics.jsonl": (RunFolder, "log", 1),
    "metrics.jsonl of the test": (RunFolder, "log", 2),
    "trace.json.gz": (torch.profiler.profile, "export_chrome_trace", 1),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_run_ended_by_a_full_disk_resumes_once_there_is_space(write, whole, data_dir, tmp_path, monkeypatch):
    path = tmp_path / "run"
    config = quick(data_dir, path, epochs=1, checkpoint_every="4", profile="trace" in write)
    with monkeypatch.context() as patch:
        before = fails(patch, *WRITES[write][:2], path, WRITES[write][2])
        with pytest.raises(UserError) as caught:
            train(config)
    assert f"{path / write.split()[0]} could not be written (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [kept(path)] == before
    assert not [file for file in path.rglob("*") if file.suffix in (".tmp", ".gz")]
    go_on(path, profile=False)
    assert_same(path, whole)


@pytest.mark.parametrize("file", ["checkpoints/last.pt", "env.json", "config.json"])
def test_a_run_that_could_not_start_blocks_no_folder(file, data_dir, tmp_path, monkeypatch):
    place, name, nth = {
        "checkpoints/last.pt": (run_folder_module, "save_state", 1),
        "env.json": (run_folder_module, "write_json", 1),
        "config.json": (run_folder_module, "write_json", 2),
    }[file]
    config = quick(data_dir, tmp_path / "run", steps=1)
    with monkeypatch.context() as patch:
        fails(patch, place, name, tmp_path / "run", nth)
        with pytest.raises(UserError, match=f"{file} could not be written"):
            train(config)
    monkeypatch.setattr(Session, "train", lambda session, resumed: None)
    assert train(config).config().training.steps == 1


@pytest.mark.parametrize(("file", "nth"), [("config.json", 1), ("env.json", 2)])
def test_a_run_that_could_not_resume_can_later(file, nth, whole, tmp_path, monkeypatch):
    path = shutil.copytree(whole, tmp_path / "run")
    before = kept(path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "done", False)
        fails(patch, run_folder_module, "write_json", path, nth)
        with pytest.raises(UserError, match=f"{file} could not be written"):
            go_on(path)
    assert {name: before[name] for name in before if "checkpoints" in name}.items() <= kept(path).items()
    go_on(path)


def test_repacking_on_a_full_disk_leaves_the_old_data(drawn, tmp_path, monkeypatch):
    folder = tmp_path / "demo" / "small"
    pack(drawn, "small", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("emnist_dali.data.prepare.load", lambda *_, **__: drawn)
    for free in (100, 100_000):  # nothing fits; only the test shard fits
        with full_disk(free), pytest.raises(UserError, match=f"{folder} could not be written") as caught:
            prepare("small", "glyphs", tmp_path, force=True)
        assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in folder.parent.glob("[a-z]*")] == ["small"]
    verify(folder, read_manifest(folder))


def test_statistics_that_cannot_be_cached_are_computed_each_time(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("stats*"))
    names = sorted(path.name for path in copy.iterdir())
    with full_disk(10):
        stats = statistics(copy, 32)
    assert sorted(path.name for path in copy.iterdir()) == names
    assert statistics(copy, 32) == stats
    assert Path(copy / "stats-32.json").exists()
