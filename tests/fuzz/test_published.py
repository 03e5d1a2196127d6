"""The other formats in which data sets are published."""

import io
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emnist_dali.data import csv_rows, matlab, npz, parquet
from emnist_dali.data.stored import Stored

from .. import published_files as published
from .mutate import broken, examples

random = np.random.default_rng(0)
PARTS = {
    part: (random.integers(0, 256, (5, 8, 8), np.uint8), np.array([0, 1, 2, 0, 1]))
    for part in ("train", "test", "validation")
}
TWO = {part: PARTS[part] for part in ("train", "test")}


def check(stored: Stored | None) -> None:
    if stored is not None:
        assert stored.images.dtype == np.uint8
        assert stored.images.ndim == 3
        assert stored.labels.dtype.kind in "bui"
        assert stored.labels.shape == stored.images.shape[:1]


def content(write, name: str) -> bytes:
    """Of a file that `write` writes."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / name).read_bytes()


CSV = [
    content(lambda path, header=header: published.csv(path, *PARTS["train"], header), "x.csv") for header in (0, 1)
]
NPZ = [content(lambda path: published.keras(path.parent, TWO), "mnist.npz")]
NPZ += [content(lambda path, colour=colour: published.medmnist(path, PARTS, colour), "x.npz") for colour in (0, 1)]
MAT = [content(lambda path: published.emnist_mat(path, TWO, 1), "emnist-letters.mat")]
# Uncompressed too, so that what is broken is the matrices.
MAT += [MAT[0][: matlab.HEADER] + bytes(matlab.inflated(io.BytesIO(MAT[0]))[0])] * 2


@examples(60)
@given(broken(*CSV))
def test_csv_bytes(attempt, place, content):
    path = place / "train.csv"
    path.write_bytes(content)
    check(attempt(lambda: csv_rows.read(path), path))


@examples(80)
@given(broken(*NPZ))
def test_npz_bytes(attempt, place, content):
    path = place / "x.npz"
    path.write_bytes(content)
    for stored in (attempt(lambda: npz.read([path]), path) or {}).values():
        check(stored)


HEADERS = ["(5, 8, 8)", "(10_000_000, 1024, 1024)", "(2**62, 2, 2)", "(-1, 8, 8)", "(5, 8, 8, 3)", "()", "(5,)", "8"]
TYPES = ["'|u1'", "'|O'", "'<f8'", "[('a', '|u1')]", "'|V8'", "'<U4294967295'", "None"]


@examples(40)
@given(st.sampled_from(HEADERS), st.sampled_from(TYPES), st.sampled_from(["x_train", "y_train", "arr_0", "a\nb", ""]))
def test_npz_headers(attempt, place, shape, dtype, name):
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    path = place / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(320)
        )
        archive.writestr("y_train.npy" if name != "y_train" else "x_train.npy", b"\x93NUMPY")
    assert attempt(lambda: npz.read([path]), path) is None


@examples(80)
@given(broken(*MAT))
def test_mat_bytes(attempt, place, content):
    path = place / "emnist-letters.mat"
    path.write_bytes(content)
    for stored in (attempt(lambda: matlab.read(path), path) or {}).values():
        check(stored)


def test_a_mat_bomb(attempt, place, monkeypatch):
    monkeypatch.setattr(matlab, "MAX_BYTES", 2**22)
    path = place / "emnist-letters.mat"
    for size in (2**21, 2**28):
        deflate = zlib.compressobj(1)
        body = b"".join(deflate.compress(bytes(2**21)) for _ in range(size // 2**21)) + deflate.flush()
        path.write_bytes(MAT[0][: matlab.HEADER] + struct.pack("<II", matlab.COMPRESSED, len(body)) + body)
        assert attempt(lambda: matlab.read(path), path) is None


try:
    PARQUET = [content(lambda path: published.parquet(path, *PARTS["train"], list("abc")), "train.parquet")]
    PARQUET += [content(lambda path: published.parquet(path, *PARTS["train"]), "train.parquet")]
except ImportError:
    PARQUET = []


@pytest.mark.skipif(not PARQUET, reason="pip install 'emnist-dali[parquet]'")
@examples(80)
@given(broken(*PARQUET) if PARQUET else st.nothing())
def test_parquet_bytes(attempt, place, content):
    path = place / "train.parquet"
    path.write_bytes(content)
    read = attempt(lambda: parquet.read({"train": [path]}, 8), path)
    check(read and read[0]["train"])
