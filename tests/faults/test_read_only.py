"""Read-only folders. Root ignores permissions, so it becomes nobody for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.training.session import Session, train

from ..training_runs import go_on, kept, quick

NOBODY = 65534


@contextmanager
def read_only(folder: Path, *used: Path) -> Iterator[None]:
    """Makes `folder` and everything in it read-only; `used` paths stay accessible."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    places = [parent for path in (folder, *used) for parent in path.parents]
    places += [path for path in used for path in (path, *path.rglob("*"))]
    outer = [path for path in dict.fromkeys(places) if root and path.stat().st_mode & 0o055 != 0o055]
    modes = {path: path.stat().st_mode for path in [*outer, folder, *folder.rglob("*")]}
    for path in outer:
        path.chmod(modes[path] | 0o055)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(NOBODY)
    try:
        if os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            pytest.skip("permissions do not bind here")
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def test_a_run_cannot_start_in_a_read_only_folder(data_dir, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    with read_only(place, data_dir), pytest.raises(UserError) as caught:
        train(quick(data_dir, place / "run"))
    assert str(caught.value) == f"{place / 'run'} could not be created (Permission denied); choose another run.out."
    assert not list(place.iterdir())


def test_a_read_only_run_cannot_resume_and_stays_unchanged(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "train", lambda session, resumed: None)
    path = train(quick(data_dir, tmp_path / "run")).path
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with read_only(path, data_dir), pytest.raises(UserError) as caught:
        go_on(path)
    assert f"{path}/" in str(caught.value)
    assert "could not be written (Permission denied)" in str(caught.value)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert kept(go_on(path).path).keys() == {"checkpoints/last.pt"}
