import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.data.idx import read_images, read_labels

from ..idx_files import idx_bytes, write_idx

EMNIST = Path(__file__).parents[3] / "shared" / "emnist"

images = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
labels = np.array([0, 1, 2, 2, 1], np.uint8)


def refused(read, path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(path)
    for word in (path.name, *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def two_classes(path: Path) -> np.ndarray:
    return read_labels(path, classes=2, offset=0)


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
def test_images_are_read_as_stored(tmp_path, name):
    read = read_images(write_idx(tmp_path / name, images))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, images)


def test_gzip_is_detected_from_content_not_name(tmp_path):
    path = tmp_path / "plain.gz"
    path.write_bytes(idx_bytes(images))
    np.testing.assert_array_equal(read_images(path), images)
    path = tmp_path / "zipped"
    path.write_bytes(gzip.compress(idx_bytes(images)))
    np.testing.assert_array_equal(read_images(path), images)


def test_more_than_one_chunk(tmp_path):
    many = np.arange(3_000 * 784, dtype=np.uint32).astype(np.uint8).reshape(3_000, 28, 28)
    np.testing.assert_array_equal(read_images(write_idx(tmp_path / "many.gz", many)), many)


def test_labels_are_shifted_to_zero(tmp_path):
    path = write_idx(tmp_path / "labels.gz", labels)
    np.testing.assert_array_equal(read_labels(path, classes=3, offset=0), labels)
    path = write_idx(tmp_path / "letters.gz", labels + 1)
    np.testing.assert_array_equal(read_labels(path, classes=3, offset=1), labels)


def test_all_256_labels(tmp_path):
    path = write_idx(tmp_path / "labels", np.arange(256, dtype=np.uint8))
    assert read_labels(path, classes=256, offset=0).max() == 255


def test_label_out_of_range(tmp_path):
    path = write_idx(tmp_path / "labels.gz", labels)
    refused(two_classes, path, "label 2 at position 2", "0 to 1")
    refused(lambda path: read_labels(path, classes=3, offset=1), path, "label 0 at position 0", "1 to 3")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_truncated_and_padded(tmp_path, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(idx_bytes(images)[:-1]))
    refused(read_images, path, "truncated", "59 of the 60")
    path.write_bytes(pack(idx_bytes(images) + b"\0"))
    refused(read_images, path, "continues after the 60")
    path.write_bytes(pack(idx_bytes(images)[:9]))
    refused(read_images, path, "in its header")
    path.write_bytes(pack(idx_bytes(images)[:3]))
    refused(read_images, path, "not an idx file")


def test_swapped(tmp_path):
    refused(read_images, write_idx(tmp_path / "a", labels), "holds labels", "swapped")
    refused(two_classes, write_idx(tmp_path / "b", images), "holds images", "swapped")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"\x89PNG" + bytes(12), "not an idx file"),
        (struct.pack(">I3I", 0x00000D03, 5, 4, 3), "type 0x0D"),
        (struct.pack(">I3I", 0x00000802, 5, 4, 3), "2 dimensions"),
        (struct.pack(">I3I", 2051, 0, 4, 3), "0 × 4 × 3"),
        (struct.pack(">I3I", 2051, 5, 0, 3), "5 × 0 × 3"),
        (struct.pack(">I3I", 2051, 5, 1025, 3), "1,025"),
        (struct.pack(">I3I", 2051, 10_000_001, 1, 1), "10,000,001"),
        (struct.pack(">I3I", 2051, 9_000_000, 1024, 1024), "768 MiB"),
        (struct.pack(">I3I", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1), "4,294,967,295"),
    ],
)
def test_wrong_headers(tmp_path, header, word):
    path = tmp_path / "file"
    path.write_bytes(header + bytes(60))
    refused(read_images, path, word)


def test_corrupt_gzip(tmp_path):
    whole = gzip.compress(idx_bytes(images))
    path = tmp_path / "images.gz"
    for broken in (
        whole[: len(whole) // 2],  # truncated
        whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],  # wrong CRC
        whole[:10] + bytes([whole[10] ^ 0x06]) + whole[11:],  # wrong block type
        whole + b"junk",
    ):
        path.write_bytes(broken)
        refused(read_images, path, "damaged")


def test_missing_file_and_folder(tmp_path):
    refused(read_images, tmp_path / "nowhere.gz", "No such file")
    refused(read_images, tmp_path, "cannot be read")


def peak_bytes(read, path: Path) -> int:
    tracemalloc.start()
    try:
        read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_file_is_held_in_memory_once(tmp_path):
    large = np.zeros((32, 1024, 1024), np.uint8)
    assert peak_bytes(read_images, write_idx(tmp_path / "large.gz", large)) < 1.25 * large.nbytes


def test_a_gzip_bomb_takes_no_memory(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(idx_bytes(images))
        for _ in range(64):
            stream.write(bytes(2**20))
    assert peak_bytes(lambda path: refused(read_images, path, "continues after"), path) < 8 * 2**20


@pytest.mark.skipif(not EMNIST.is_dir(), reason="needs the real EMNIST files in ../shared/emnist")
def test_real_files():
    test = EMNIST / "balanced" / "emnist-balanced-test-images-idx3-ubyte.gz"
    assert read_images(test).shape == (18_800, 28, 28)
    labels = read_labels(EMNIST / "balanced" / "emnist-balanced-test-labels-idx1-ubyte.gz", 47, 0)
    assert np.bincount(labels).tolist() == [400] * 47
