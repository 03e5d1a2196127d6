import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from emnist_dali.data import stats
from emnist_dali.data.manifest import CODECS, Manifest, read_manifest, verify
from emnist_dali.data.pack import pack
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source, SourceFile
from emnist_dali.data.stats import Stats
from emnist_dali.pipelines.fused import Preprocess

from ..prepared import manifest_of, vouch_for
from .mutate import WORDS, broken, broken_json, examples, json_bytes

random = np.random.default_rng(0)
CLASSES = ("a", "b", "é")
PART = Part(random.integers(0, 256, (9, 6, 5), np.uint8), np.arange(9, dtype=np.uint8) % 3)
FILES = (SourceFile("train", 1, "0" * 64, False),)
SOURCE = Source("/source", CLASSES, {"train": PART, "test": PART}, FILES, official=False)
SHARD = "train-00000.safetensors"


@pytest.fixture(scope="module", params=CODECS)
def prepared(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "own"
    pack(SOURCE, "own", folder, request.param)
    return folder


def copy_of(prepared: Path, place: Path) -> Path:
    folder = place / "own"
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(prepared, folder)


def read(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each part, by every way that the program reads them."""
    prepare("own", None, folder.parent)
    manifest = read_manifest(folder)
    assert isinstance(str(manifest), str)
    assert len(manifest.fingerprint) == 64
    parts = {}
    for part in ("train", "test"):
        shards = Shards(folder, part)
        indices = np.arange(len(shards))
        labels, images = shards.labels(indices), shards.images(indices)
        np.testing.assert_array_equal(shards.labels(), labels)
        records, sizes = shards.records(indices)
        assert records.size == sizes.sum()
        out = np.empty((len(shards), 8, 8), np.float32)
        preprocess = Preprocess(Stats(0.5, 0.5).pixel_spec(shards.shape, 8), compressed=shards.compressed)
        shards.preprocess(preprocess, indices, np.empty((0, 2, 3), np.float32), out)
        assert np.isfinite(out).all()
        assert images.shape == (len(shards), *shards.shape)
        assert labels.max() < len(manifest.classes)
        parts[part] = images, labels
    return parts


def test_intact_data_are_read(attempt, prepared, place):
    copy = copy_of(prepared, place)
    for images, labels in attempt(lambda: read(copy), copy).values():
        np.testing.assert_array_equal(images, PART.images)
        np.testing.assert_array_equal(labels, PART.labels)


@examples(60)
@given(st.data())
def test_manifests(attempt, prepared, place, data):
    copy = copy_of(prepared, place)
    content = data.draw(json_bytes(manifest_of(prepared)))  # without a sha256, which is not required
    (copy / "manifest.json").write_bytes(content)
    parts = attempt(lambda: read(copy), copy)
    if parts is not None:
        manifest = read_manifest(copy)
        assert isinstance(manifest, Manifest)
        attempt(lambda: verify(copy, manifest), copy)


def replace_shard(folder: Path, content: bytes) -> None:
    """Writes `content` as the shard, and its hash into the manifest."""
    (folder / SHARD).write_bytes(content)
    vouch_for(folder)


@examples(80)
@given(st.data())
def test_shard_bytes(attempt, prepared, place, data):
    copy = copy_of(prepared, place)
    replace_shard(copy, data.draw(broken((prepared / SHARD).read_bytes())))
    attempt(lambda: read(copy), copy)


@examples(60)
@given(st.data())
def test_shard_headers(attempt, prepared, place, data):
    copy = copy_of(prepared, place)
    whole = (prepared / SHARD).read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    header = json.dumps(data.draw(broken_json(json.loads(whole[8 : 8 + length])))).encode()
    header += b" " * (-len(header) % data.draw(st.sampled_from([1, 8])))
    replace_shard(copy, struct.pack("<Q", len(header)) + header + whole[8 + length :])
    attempt(lambda: read(copy), copy)


@examples(80)
@given(st.data())
def test_shard_tensors(attempt, prepared, place, data):
    """Correct dtypes and lengths; wrong offsets, labels and records."""
    copy = copy_of(prepared, place)
    tensors = {name: tensor.copy() for name, tensor in load((prepared / SHARD).read_bytes()).items()}
    for _ in range(data.draw(st.integers(1, 3))):
        flat = tensors[data.draw(st.sampled_from(sorted(tensors)))]
        at = data.draw(st.integers(0, len(flat) - 1))
        word = data.draw(st.sampled_from([word for word in WORDS if len(word) == flat.itemsize]))
        near = int(flat[at]) + data.draw(st.integers(-40, 40))
        kept = near % 2 ** (8 * flat.itemsize - 1)
        flat[at] = data.draw(st.sampled_from([np.frombuffer(word, flat.dtype)[0], flat.dtype.type(kept)]))
    replace_shard(copy, save(tensors))
    attempt(lambda: read(copy), copy)


@examples(60)
@given(json_bytes({"mean": 0.17, "std": 0.33}))
def test_statistics(attempt, prepared, place, content):
    copy = copy_of(prepared, place)
    path = copy / "stats-8.json"
    path.write_bytes(content)
    computed = attempt(lambda: stats.statistics(copy, 8), path)
    if computed is not None:
        assert 0 <= computed.mean <= 1
        assert 0 < computed.std <= 1
