"""Downloads from a local server that behaves, refuses ranges, cuts transfers, sends wrong data or is absent."""

import hashlib
import io
import re
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import sha256
from emnist_dali.data import download, named_sets
from emnist_dali.data.emnist import SPLITS, OfficialFile, file_name
from emnist_dali.data.manifest import read_manifest
from emnist_dali.data.named_sets import NamedFile, NamedSet
from emnist_dali.data.prepare import prepare

from ..archive_server import serving

NO_DELAYS = (0, 0)
NAMES = {
    split: [file_name(split, part, kind) for part in ("train", "test") for kind in ("images", "labels")]
    for split in ("mnist", "digits")
}


@pytest.fixture
def server(monkeypatch):
    """Serves an archive whose members, random bytes, are patched in as the official files of two splits."""
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, names in NAMES.items():
            for name in names:
                content = random.bytes(100_000 if "images" in name else 200)
                official = OfficialFile(hashlib.sha256(content).hexdigest(), len(content))
                monkeypatch.setitem(download.OFFICIAL_FILES, name, official)
                method = zipfile.ZIP_STORED if split == "mnist" else zipfile.ZIP_DEFLATED
                archive.writestr(f"gzip/{name}", content, method)
    monkeypatch.setattr(download, "ARCHIVE_MD5", hashlib.md5(buffer.getvalue()).hexdigest())
    with serving(buffer.getvalue()) as server:
        yield server


def spoil(server, name: str) -> None:
    """Changes one byte of a member on the server."""
    with zipfile.ZipFile(io.BytesIO(server.data)) as archive:
        place = archive.getinfo(f"gzip/{name}").header_offset + 150
    server.data = server.data[:place] + bytes([server.data[place] ^ 1]) + server.data[place + 1 :]


def fetch(server, folder: Path, split: str = "mnist") -> list[Path]:
    return download.fetch(split, folder, server.url, NO_DELAYS)


def assert_official(paths: list[Path], split: str = "mnist") -> None:
    assert [path.name for path in paths] == NAMES[split]
    for path in paths:
        assert sha256(path) == download.OFFICIAL_FILES[path.name].sha256


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "emnist-dali-" in path.name)


def part(name: str) -> str:
    return f".{name}.emnist-dali-part"


def span(requested: str) -> tuple[int, int]:
    first, last = requested.removeprefix("bytes=").split("-")
    return int(first), int(last)


@pytest.mark.parametrize("split", ["mnist", "digits"], ids=["stored", "deflated"])
def test_only_the_members_are_fetched(server, tmp_path, split):
    assert_official(fetch(server, tmp_path / "new" / "folder", split), split)
    assert not leftovers(tmp_path / "new" / "folder")
    directory, *members = server.ranges_requested
    assert directory == "bytes=-65536"
    assert len(members) == 4
    assert sum(last + 1 - first for first, last in map(span, members)) < 210_000


def test_official_files_are_kept_and_others_renamed(server, tmp_path):
    paths = fetch(server, tmp_path)
    server.ranges_requested.clear()
    assert_official(fetch(server, tmp_path))
    assert server.ranges_requested == []
    for i, content in enumerate((b"wrong", b"other"), 1):  # possibly the user's own
        server.ranges_requested.clear()
        paths[1].write_bytes(content)
        assert_official(fetch(server, tmp_path))
        assert len(server.ranges_requested) == 2
        assert paths[1].with_name(f"{paths[1].name}.not-official-{i}").read_bytes() == content


def test_an_interrupted_transfer_requests_only_the_rest(server, tmp_path):
    server.cuts = [3 * download.PACKET, 2 * download.PACKET]
    assert_official(fetch(server, tmp_path))
    (first, last), second, third = map(span, server.ranges_requested[1:4])
    assert second == (first + 3 * download.PACKET, last)
    assert third == (first + 5 * download.PACKET, last)


@pytest.mark.parametrize("sends_length", [True, False])
def test_a_later_run_resumes_the_download(server, tmp_path, sends_length):
    server.sends_length = sends_length
    server.cuts = [2 * download.PACKET + 1, 1, 1]
    with pytest.raises(UserError, match=r"NIST could not be reached.*run again.*--source PATH.*--source glyphs"):
        fetch(server, tmp_path)
    assert leftovers(tmp_path) == [part(NAMES["mnist"][0])]
    first, last = span(server.ranges_requested[1])
    server.ranges_requested.clear()
    assert_official(fetch(server, tmp_path))
    kept = 2 * download.PACKET + (0 if sends_length else 3)
    assert span(server.ranges_requested[1]) == (first + kept, last)


@pytest.mark.parametrize("size", [5_000, 500_000], ids=["shorter", "longer"])
def test_a_part_file_with_other_content_is_replaced(server, tmp_path, size):
    (tmp_path / part(NAMES["mnist"][0])).write_bytes(bytes(size))
    assert_official(fetch(server, tmp_path))
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("split", ["mnist", "digits"], ids=["stored", "deflated"])
def test_a_corrupt_file_never_gets_the_official_name(server, tmp_path, split):
    name = NAMES[split][2]
    spoil(server, name)
    with pytest.raises(UserError, match=rf"{name} with a sha256 that is not the official one.*--source PATH"):
        fetch(server, tmp_path, split)
    assert not (tmp_path / name).exists()
    assert not leftovers(tmp_path)
    assert len({requested for requested in server.ranges_requested[1:]}) == 3
    assert len(server.ranges_requested) == 5  # the directory, two good members, the corrupt one twice


def test_without_ranges_the_archive_serves_all_splits(server, tmp_path):
    server.ranges = False
    server.cuts = [50_000]
    assert_official(fetch(server, tmp_path))
    assert (tmp_path / "gzip.zip").read_bytes() == server.data
    assert not leftovers(tmp_path)
    assert len(server.ranges_requested) == 3  # the refused directory, the interrupted and the complete archive
    server.ranges_requested.clear()
    assert_official(fetch(server, tmp_path, "digits"), "digits")
    assert server.ranges_requested == []


def before_transfers(monkeypatch, change) -> None:
    """Calls `change()` after the archive's directory has been read."""
    fetch_bytes = download._fetch_bytes

    def changed(*args):
        change()
        fetch_bytes(*args)

    monkeypatch.setattr(download, "_fetch_bytes", changed)


def test_ranges_refused_after_the_directory(server, tmp_path, monkeypatch):
    before_transfers(monkeypatch, lambda: setattr(server, "ranges", False))
    assert_official(fetch(server, tmp_path))
    assert (tmp_path / "gzip.zip").exists()


def test_a_different_archive(server, tmp_path):
    server.ranges = False
    spoil(server, NAMES["mnist"][0])
    with pytest.raises(UserError, match=r"gzip\.zip sends something other than the EMNIST archive"):
        fetch(server, tmp_path)
    assert list(tmp_path.glob("[a-z]*")) == []


def test_a_partial_archive_is_resumed_if_ranges_work(server, tmp_path, monkeypatch):
    def refuse(*args):
        raise download.RangeNotSupported("for the directory")

    monkeypatch.setattr(download, "_fetch_members", refuse)
    (tmp_path / part("gzip.zip")).write_bytes(server.data[:1_000])
    assert_official(fetch(server, tmp_path))
    assert server.ranges_requested == [f"bytes=1000-{len(server.data) - 1}"]


def test_a_wrong_range_is_an_error(server, tmp_path, monkeypatch):
    before_transfers(monkeypatch, lambda: setattr(server, "shift", 1))
    with pytest.raises(UserError, match="sends the range 'bytes 1-"):
        fetch(server, tmp_path)


def test_an_archive_that_changes_length_is_an_error(server, tmp_path, monkeypatch):
    before_transfers(monkeypatch, lambda: setattr(server, "data", server.data + b"more"))
    with pytest.raises(UserError, match="the file has changed"):
        fetch(server, tmp_path)


def test_not_a_zip_and_not_emnist(server, tmp_path):
    server.data = bytes(100_000)
    with pytest.raises(UserError, match="is not the EMNIST archive"):
        fetch(server, tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("gzip/other", bytes(100_000))
    server.data = buffer.getvalue()
    with pytest.raises(UserError, match=r"is not the EMNIST archive .*gzip/emnist-mnist-train-images"):
        fetch(server, tmp_path)


def test_no_server(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/gzip.zip"
        with pytest.raises(UserError, match=r"NIST could not be reached at http.*refused.*--source PATH") as caught:
            download.fetch("mnist", tmp_path, url, NO_DELAYS)
    assert len(str(caught.value)) < 400


def test_a_folder_that_cannot_be_created(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be stored in .*file.*choose another folder"):
        fetch(server, tmp_path / "file")


@pytest.fixture
def named(monkeypatch, tmp_path):
    """Serves a set of one npz file, under a new name, which is patched in."""
    path = tmp_path / "small.npz"
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (20, 28, 28), np.uint8), np.arange(20) % 4
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8])
    content = path.read_bytes()
    with serving(content) as server:
        file = NamedFile("small.npz", None, hashlib.md5(content).hexdigest())
        url = server.url.removesuffix("gzip.zip")
        monkeypatch.setitem(download.SETS, "small", NamedSet("Small", url, tuple("あいうえ"), (file,), "?download=1"))
        monkeypatch.setitem(named_sets.DIGESTS, file.digest, "small")
        yield server


def test_a_named_set_is_fetched_and_prepared(named, tmp_path, capsys, monkeypatch):
    folder = prepare("small", data_dir=tmp_path / "data")
    manifest = read_manifest(folder)
    assert (manifest.origin, manifest.official, manifest.classes) == ("official", True, tuple("あいうえ"))
    assert manifest.counts == {"train": (5,) * 4, "test": (2,) * 4}
    out = capsys.readouterr().out
    assert "stored upright (known by the files' hashes)" in out
    assert "holds small, as published, 4 classes" in out
    named.ranges_requested.clear()
    prepare("small", data_dir=tmp_path / "data", force=True)
    assert not named.ranges_requested
    # The same file from elsewhere, under another name, is known by its content.
    (tmp_path / "data" / "source" / "small" / "small.npz").rename(tmp_path / "copy.npz")
    assert read_manifest(prepare("small", str(tmp_path / "copy.npz"), tmp_path / "other")).official
    with pytest.raises(UserError, match="holds the files of small, not of kmnist; choose --split small"):
        prepare("kmnist", str(tmp_path / "copy.npz"), tmp_path / "other")
    files = (*download.SETS["small"].files, NamedFile("more.npz", None, "0" * 32))
    monkeypatch.setitem(download.SETS, "small", replace(download.SETS["small"], files=files))
    part = read_manifest(prepare("small", str(tmp_path / "copy.npz"), tmp_path / "part"))
    assert (part.files[0]["official"], part.official) == (True, False)


def test_a_named_set_that_is_not_the_published_one(named, tmp_path):
    named.data = named.data[:-1] + b"x"
    with pytest.raises(UserError, match=r"something other than the file of Small .*--source PATH\.$"):
        prepare("small", data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "small").exists()


def test_a_damaged_file_of_a_named_set_is_replaced(named, tmp_path):
    source = tmp_path / "data" / "source" / "small"
    source.mkdir(parents=True)
    (source / "small.npz").write_bytes(named.data[:-1])
    assert read_manifest(prepare("small", data_dir=tmp_path / "data")).official
    assert (source / "small.npz.not-official-1").exists()


def test_a_named_set_from_a_server_that_tells_no_size(named, tmp_path, monkeypatch):
    named.sends_length = False
    assert download.fetch_set("small", tmp_path / "unknown", NO_DELAYS)[0].read_bytes() == named.data
    assert named.ranges_requested == [None]
    named.sends_length, named.heads, named.cuts = True, False, [1_000]
    named.ranges_requested.clear()
    assert download.fetch_set("small", tmp_path / "no head", NO_DELAYS)[0].read_bytes() == named.data
    assert named.ranges_requested == [None, None]
    named.ranges_requested = [None]
    known = replace(download.SETS["small"].files[0], bytes=len(named.data))
    monkeypatch.setitem(download.SETS, "small", replace(download.SETS["small"], files=(known,)))
    download.fetch_set("small", tmp_path / "known", NO_DELAYS)
    assert named.ranges_requested[1:] == [f"bytes=0-{len(named.data) - 1}"]


def test_a_named_set_without_a_network(named, tmp_path):
    named.shutdown()
    named.server_close()
    with pytest.raises(UserError, match=r"Small could not be reached at .*check the connection.*--source PATH"):
        download.fetch_set("small", tmp_path / "data", NO_DELAYS)


def test_the_table_of_named_sets():
    for name, published in named_sets.SETS.items():
        assert name == name.lower()
        assert name not in SPLITS
        assert published.url.startswith("http")
        assert published.url.endswith("/")
        assert 2 <= len(published.classes) == len(set(published.classes)) <= 256
        for file in published.files:
            assert re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", file.digest)
    files = sum(len(published.files) for published in named_sets.SETS.values()) + len(named_sets.MNIST)
    assert len(named_sets.DIGESTS) == files
