import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import write_json
from emnist_dali.data import pack as pack_module
from emnist_dali.data.manifest import read_manifest, verify
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.data.stats import Stats
from emnist_dali.pipelines import fused

from ..prepared import manifest_of, vouch_for


def test_images_and_labels_round_trip(drawn, folder):
    for name, part in drawn.parts.items():
        shards = Shards(folder, name)
        order = np.random.default_rng(0).permutation(len(shards))
        np.testing.assert_array_equal(shards.images(order), part.images[order])
        np.testing.assert_array_equal(shards.labels(order), part.labels[order])
        np.testing.assert_array_equal(shards.labels(), part.labels)


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_many_shards_are_one_part(codec, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "SHARD_SAMPLES", 97)
    manifest = pack(drawn, "small", tmp_path / "small", codec)
    assert [file.samples for file in manifest.shards["train"]] == [97] * 6 + [18]
    shards = Shards(tmp_path / "small", "train")
    order = np.random.default_rng(0).permutation(len(shards))
    np.testing.assert_array_equal(shards.images(order), drawn.parts["train"].images[order])
    np.testing.assert_array_equal(shards.labels(order), drawn.parts["train"].labels[order])
    for records, sizes, some in zip(*shards.records(order[:48], 4), order[:48].reshape(4, 12), strict=True):
        gathered = fused.Records([(records, np.cumsum([0, *sizes]), np.zeros(12, np.uint8))])
        decoded = np.empty((12, 784), np.uint8)
        assert fused.decode(gathered, np.arange(12), codec == "lz4", decoded) == fused.SOUND
        np.testing.assert_array_equal(decoded.reshape(12, 28, 28), drawn.parts["train"].images[some])


def test_two_runs_give_the_same_bytes(drawn, folder, tmp_path):
    pack(drawn, "small", tmp_path / "again")
    names = ["manifest.json", *sorted(path.name for path in folder.glob("*.safetensors"))]
    assert names == ["manifest.json", *sorted(path.name for path in (tmp_path / "again").glob("*.safetensors"))]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_manifest_describes_the_data(drawn, folder):
    manifest = read_manifest(folder)
    assert (manifest.split, manifest.origin, manifest.shape) == ("small", "glyphs", (28, 28))
    assert manifest.classes == drawn.classes
    assert manifest.counts == {"train": (50,) * 12, "test": (9,) * 12, "unseen": (9,) * 12}
    assert "not EMNIST" in str(manifest)
    verify(folder, manifest)


def test_an_interrupted_run_leaves_nothing_that_looks_finished(drawn, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pack_module, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(drawn, "small", tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_the_old_data_intact(drawn, tmp_path, monkeypatch):
    pack(drawn, "small", tmp_path / "small")

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module, "write_json", disk_full)
    with pytest.raises(UserError, match="No space left"):
        pack(drawn, "small", tmp_path / "small", "raw")
    monkeypatch.undo()
    manifest = read_manifest(tmp_path / "small")
    assert manifest.codec == "lz4"
    verify(tmp_path / "small", manifest)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_flipped_byte_is_detected_by_its_hash(copy):
    path = copy / "train-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.safetensors is not the shard"):
        verify(copy, read_manifest(copy))


def test_a_truncated_or_missing_shard_is_detected_on_opening(copy):
    path = copy / "test-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test-00000\.safetensors has"):
        Shards(copy, "test")
    path.unlink()
    with pytest.raises(UserError, match=r"test-00000\.safetensors is missing"):
        Shards(copy, "test")


def test_a_file_of_the_right_size_that_is_not_a_shard(copy):
    path = copy / "test-00000.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError, match=r"test-00000\.safetensors is not a valid shard"):
        Shards(copy, "test")


def test_a_changed_shard_is_detected_at_the_next_epoch(copy):
    shards = Shards(copy, "train")
    shards.check()
    path = copy / "train-00000.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="was changed while in use"):
        shards.check()


def test_a_record_that_does_not_decode_is_named(drawn, tmp_path, monkeypatch):
    compress = pack_module.lz4.block.compress
    broken = drawn.parts["train"].images[7].tobytes()

    def truncating(record, store_size):
        block = compress(record, store_size=store_size)
        return block[:-3] if record == broken else block

    monkeypatch.setattr(pack_module.lz4.block, "compress", truncating)
    pack(drawn, "small", tmp_path / "small")
    shards = Shards(tmp_path / "small", "train")
    preprocess = fused.Preprocess(Stats(0, 1).pixel_spec((28, 28), 28), compressed=True)
    out, resize = np.empty((3, 28, 28), np.float32), np.empty((0, 2, 3), np.float32)
    shards.preprocess(preprocess, np.array([5, 6, 8]), resize, out)
    with pytest.raises(UserError, match=r"train-00000\.safetensors: record 7 "):
        shards.preprocess(preprocess, np.array([5, 7, 8]), resize, out)


def test_offsets_outside_the_shard_are_named(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "SHARD_SAMPLES", 97)
    pack(drawn, "small", tmp_path / "small")
    path = tmp_path / "small" / "train-00001.safetensors"
    tensors = load_file(path)
    tensors["offsets"][30] = 1 << 40
    save_file(tensors, path)
    vouch_for(tmp_path / "small")
    shards = Shards(tmp_path / "small", "train")
    for read in (shards.records, shards.images):
        read(np.array([5, 97 + 28]))
        with pytest.raises(UserError, match=r"train-00001\.safetensors: record 30 "):
            read(np.array([5, 97 + 30]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        (
            {"shards": {"train": [{"file": "../../etc/passwd", "samples": 1, "bytes": 1, "sha256": ""}]}},
            "names files",
        ),
        ({"shape": 28}, "not a valid manifest"),
        ({"extra": 1}, "not a valid manifest"),
    ],
)
def test_a_broken_manifest_is_an_error(change, message, copy):
    write_json(copy / "manifest.json", manifest_of(copy) | change)
    with pytest.raises(UserError, match=message):
        read_manifest(copy)


def test_a_manifest_that_is_not_an_object_or_not_json(copy):
    for content in ("[]", "3", "{", ""):
        (copy / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json"):
            read_manifest(copy)


def test_too_many_classes(tmp_path):
    part = Part(np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8))
    source = Source("x", tuple(map(str, range(257))), {"train": part, "test": part}, (), official=False)
    with pytest.raises(UserError, match="257 classes"):
        pack(source, "many", tmp_path / "many")
