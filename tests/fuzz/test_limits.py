import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from emnist_dali.config import Data, Model
from emnist_dali.core import files
from emnist_dali.core.errors import UserError
from emnist_dali.data import archive, image_files, image_folder, image_headers, sources
from emnist_dali.data import pack as pack_module
from emnist_dali.data.manifest import MAX_SAMPLES, read_manifest
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.data.stats import statistics

from ..prepared import manifest_of

PART = Part(np.arange(60, dtype=np.uint8).reshape(10, 3, 2), np.zeros(10, np.uint8))
SOURCE = Source("x", ("a",), {"train": PART}, (), official=False)


@pytest.fixture
def images(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.new("L", (12, 10)).save(tmp_path / part / "a" / "x.png")
    return tmp_path


@pytest.mark.parametrize(
    ("module", "limit", "value", "message"),
    [
        (image_headers, "MAX_PIXELS", 119, r"x\.png .*its 12 × 10 pixels are more than 119"),
        (image_files, "MAX_FILE_BYTES", 10, r"x\.png .*more than"),
        (image_folder, "MAX_BYTES", 63, r"train contains 1 images; .* 8 × 8"),
        (sources, "MAX_CLASSES", 0, "1 classes"),
    ],
)
def test_of_a_folder_of_images(images, monkeypatch, module, limit, value, message):
    sources.load("own", str(images), images, size=8)
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(UserError, match=message):
        sources.load("own", str(images), images, size=8)


def test_of_a_zip(tmp_path, monkeypatch):
    path = tmp_path / "gzip.zip"
    with zipfile.ZipFile(path, "w") as members:
        for i in range(100):
            members.writestr(f"{i}", b"")
    with pytest.raises(UserError, match="lacks"):
        sources.load("letters", str(path), tmp_path)
    monkeypatch.setattr(archive, "MAX_DIRECTORY", 4_000)
    with pytest.raises(UserError, match="Truncated central directory"):
        sources.load("letters", str(path), tmp_path)


def test_of_json(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text("[1, 2]")
    assert files.read_json(path) == [1, 2]
    monkeypatch.setattr(files, "MAX_JSON", 5)
    with pytest.raises(UserError, match="more than 5 bytes"):
        files.read_json(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shape": [3, 1025]}, "shape"),
        ({"classes": ["a"] * 257, "counts": {"train": [0] * 257}}, "classes"),
        ({"classes": ["a" * 4097]}, "classes"),
        ({"counts": {"train": [MAX_SAMPLES + 1]}}, "counts"),
        ({"samples": MAX_SAMPLES + 1}, "shards"),
    ],
)
def test_of_a_manifest(tmp_path, change, field):
    pack(SOURCE, "own", tmp_path / "own")
    path = tmp_path / "own" / "manifest.json"
    content = manifest_of(tmp_path / "own")
    if "samples" in change:
        content["shards"]["train"][0] |= change
    else:
        content |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"wrong {field}"):
        read_manifest(tmp_path / "own")


def test_of_a_shard_while_packing(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "SHARD_BYTES", 4 * 6)
    manifest = pack(SOURCE, "own", tmp_path / "own")
    assert [file.samples for file in manifest.shards["train"]] == [4, 4, 2]
    read = Shards(tmp_path / "own", "train").images(np.arange(10))
    np.testing.assert_array_equal(read, PART.images)


def test_of_images_of_one_grey_level(tmp_path):
    """Rounding must not yield a tiny deviation, nor the root of a negative number."""
    for level in range(1, 255, 23):
        part = Part(np.full((7, 5, 5), level, np.uint8), np.zeros(7, np.uint8))
        pack(replace(SOURCE, parts={"train": part}), "own", tmp_path / "own")
        assert statistics(tmp_path / "own", 8).std == 1


@pytest.mark.parametrize(
    ("kind", "limits"),
    [(Data, {"image_size": (8, 1024), "batch_size": (1, 2**20)}), (Model, {"stem_stride": (1, 8)})],
)
def test_of_a_config(kind, limits):
    for name, (least, most) in limits.items():
        assert kind(**{name: least}) != kind(**{name: most})
        for value in (least - 1, most + 1):
            with pytest.raises(UserError, match=f"at least {least} and at most {most:,}"):
                kind(**{name: value})
