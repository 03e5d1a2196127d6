import gzip
import io
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emnist_dali.data import idx, sources
from emnist_dali.data.emnist import SPLITS, file_name

from ..idx_files import idx_bytes
from .mutate import broken, examples

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
random = np.random.default_rng(0)
CLASSES = SPLITS["letters"].classes
IMAGES = idx_bytes(random.integers(0, 256, (5, 4, 3), np.uint8))
LABELS = idx_bytes(np.array([1, 2, 26, 3, 4], np.uint8))
HUGE = [struct.pack(">I3I", 2051, *shape) for shape in ((1024, 1024, 1024), (2**32 - 1, 1, 1), (10_000_000, 28, 28))]
MEMBERS = {
    file_name("letters", part, kind): gzip.compress(content, mtime=0)
    for part in ("train", "test")
    for kind, content in (("images", IMAGES), ("labels", LABELS))
}


def plain(content: bytes) -> bytes:
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


@examples(80)
@given(broken(IMAGES, IMAGES, gzip.compress(IMAGES, mtime=0), LABELS, *HUGE))
def test_idx_images(attempt, place, content):
    path = place / "images-idx3-ubyte"
    path.write_bytes(content)
    images = attempt(lambda: idx.read_images(path), path)
    if images is not None:
        assert images.dtype == np.uint8
        assert plain(content) == idx_bytes(images)


@examples(80)
@given(broken(LABELS, LABELS, gzip.compress(LABELS, mtime=0), IMAGES))
def test_idx_labels(attempt, place, content):
    path = place / "labels-idx1-ubyte"
    path.write_bytes(content)
    labels = attempt(lambda: idx.read_labels(path, classes=26, offset=1), path)
    if labels is not None:
        assert labels.max() < 26
        assert plain(content) == idx_bytes(labels + 1)


def bomb(header: bytes, mebibytes: int) -> bytes:
    """A gzip of zeros at a thousandth of their size: one compressed block repeated, with a wrong checksum."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    start = deflate.compress(header) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"", mtime=0)[:10] + start + block * mebibytes + deflate.flush() + bytes(8)


@examples(4)
@given(st.sampled_from([(1, 1, 1), (600, 1024, 1024), (1024, 1024, 1024)]), st.sampled_from([1, 64, 800]))
def test_idx_gzip_bombs(attempt, place, shape, mebibytes):
    path = place / "images-idx3-ubyte.gz"
    path.write_bytes(bomb(struct.pack(">I3I", 2051, *shape), mebibytes))
    assert attempt(lambda: idx.read_images(path), path) is None


def pack(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"gzip/{name}", content)
    return buffer.getvalue()


def check(loaded: sources.Source | None) -> None:
    if loaded is not None:
        assert loaded.classes == tuple(CLASSES)
        for part in loaded.parts.values():
            assert part.images.dtype == part.labels.dtype == np.uint8
            assert len(part.images) == len(part.labels)
            assert part.labels.max() < len(CLASSES)


def load(path: Path) -> sources.Source:
    return sources.load("letters", str(path), path / "no cache is needed")


@examples(100)
@given(broken(*(pack(MEMBERS, method) for method in METHODS)))
def test_zip_bytes(attempt, place, content):
    path = place / "gzip.zip"
    path.write_bytes(content)
    check(attempt(lambda: load(path), path))


NAMES = ["../outside", "/tmp/outside", "gzip/../../outside", "gzip/", "gzip", "C:\\outside", "a\nb", "é" * 300, "\0"]


@st.composite
def archives(draw) -> bytes:
    """Archives with members that are missing, duplicated, links, bombs, encrypted or outside the folder."""
    buffer = io.BytesIO()
    wanted = [f"gzip/{name}" for name in MEMBERS]
    names = draw(st.lists(st.sampled_from(NAMES), max_size=3)) + draw(st.permutations(wanted))
    contents = [*MEMBERS.values(), IMAGES, LABELS, b"", b"/etc/passwd", bytes(2**20)]
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # about duplicate names
        for name in names:
            member = zipfile.ZipInfo(name)
            expected = MEMBERS.get(name.removeprefix("gzip/"), b"")
            content = draw(st.one_of(st.just(expected), st.just(expected), st.sampled_from(contents)))
            member.compress_type = draw(st.sampled_from(METHODS))
            if draw(st.integers(0, 5)) == 5:
                member.external_attr = (stat.S_IFLNK | 0o777) << 16
            if draw(st.integers(0, 5)) == 5:
                archive.writestr(member, content[::-1])
            archive.writestr(member, content)
            if draw(st.integers(0, 9)) == 9:
                member.flag_bits |= draw(st.sampled_from([1, 0x20, 0x40, 0x800]))
    return buffer.getvalue()


@examples(80)
@given(archives())
def test_zip_members(attempt, place, content):
    path = place / "gzip.zip"
    path.write_bytes(content)
    check(attempt(lambda: load(path), path))


def test_an_intact_archive_is_read(attempt, place):
    path = place / "gzip.zip"
    path.write_bytes(pack(MEMBERS))
    loaded = attempt(lambda: load(path), path)
    for part in loaded.parts.values():
        assert idx_bytes(part.images.transpose(0, 2, 1)) == IMAGES
        assert idx_bytes(part.labels + 1) == LABELS
