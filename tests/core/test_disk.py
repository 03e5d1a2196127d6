"""Parts of files come into memory, past the system's cache or not."""

import errno
import os

import numpy as np
import pytest

from emnist_dali.core import disk


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (4095, 4097), (4096, 8192), (5000, 5000), (0, 20_000)])
def test_any_part_of_a_file(start, stop, cached, tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    found = disk.read(tmp_path / "file", start, stop, *disk.allocate([stop - start]), cached=cached)
    np.testing.assert_array_equal(found, content[start:stop])


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="only Linux reads past the cache")
@pytest.mark.parametrize(("owner", "name"), [(os, "open"), (disk, "_read")])
def test_a_file_system_without_reads_past_the_cache(owner, name, tmp_path, monkeypatch):
    content = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    refused, real = [], getattr(owner, name)

    def without(*arguments):
        if arguments[-1] & os.O_DIRECT:
            refused.append(True)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(*arguments)

    monkeypatch.setattr(owner, name, without)
    found = disk.read(tmp_path / "file", 5000, 19_999, *disk.allocate([14_999]), cached=False)
    np.testing.assert_array_equal(found, content[5000:19_999])
    assert refused
    with pytest.raises(EOFError, match="ends after 20000 bytes"):
        disk.read(tmp_path / "file", 5000, 20_001, *disk.allocate([15_001]), cached=True)


def test_a_system_without_advice_or_reads_past_the_cache(tmp_path, monkeypatch):
    for name in ("O_DIRECT", "posix_fadvise"):
        monkeypatch.delattr(os, name, raising=False)
    (tmp_path / "file").write_bytes(b"0123456789")
    assert disk.read(tmp_path / "file", 2, 9, *disk.allocate([7]), cached=False).tobytes() == b"2345678"
