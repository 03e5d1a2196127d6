"""A lock holds a folder's file, also where the last holder removed that file with the folder's others."""

import pytest

from emnist_dali.core import locks
from emnist_dali.core.errors import InUseError
from emnist_dali.core.locks import Lock

pytestmark = pytest.mark.skipif(not locks.fcntl, reason="Windows removes no open file")


def test_a_file_that_was_removed_before_it_was_locked_is_not_the_lock(tmp_path, monkeypatch):
    path, real = tmp_path / "lock", locks._lock
    with monkeypatch.context() as patch:

        def removed(descriptor):
            patch.undo()
            path.unlink()
            real(descriptor)

        patch.setattr(locks, "_lock", removed)
        first = Lock(path, tmp_path)
    with first, pytest.raises(InUseError, match="is in use by process"):
        Lock(path, tmp_path)
