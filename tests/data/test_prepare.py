import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.data import manifest as manifest_module
from emnist_dali.data import prepare as prepare_module
from emnist_dali.data.emnist import SPLITS, file_name
from emnist_dali.data.manifest import read_manifest, repack
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards

from ..idx_files import write_idx


def write_split(folder, split="digits", counts=(60, 20), seed=0):
    """Writes the four idx files of a small split, with images transposed like the official ones."""
    info, rng = SPLITS[split], np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for part, n in zip(("train", "test"), counts, strict=True):
        images[part] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n) % len(info.classes) + info.label_offset
        write_idx(folder / file_name(split, part, "images"), images[part].transpose(0, 2, 1))
        write_idx(folder / file_name(split, part, "labels"), labels.astype(np.uint8))
    return images


@pytest.mark.parametrize("split", list(SPLITS))
def test_every_split_is_packed_upright(split, tmp_path):
    images = write_split(tmp_path / "source", split, (130, 62))
    folder = prepare(split, str(tmp_path / "source"), tmp_path / "data")
    assert folder == tmp_path / "data" / split
    for part, expected in images.items():
        shards = Shards(folder, part)
        np.testing.assert_array_equal(shards.images(np.arange(len(shards))), expected)
        np.testing.assert_array_equal(shards.labels(), np.arange(len(shards)) % len(SPLITS[split].classes))
    manifest = read_manifest(folder)
    assert "".join(manifest.classes) == SPLITS[split].classes
    assert not manifest.official
    assert len(manifest.files) == 4


def test_a_rerun_verifies_and_skips(tmp_path, capsys):
    write_split(tmp_path / "source")
    folder = prepare("digits", str(tmp_path / "source"), tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[a-z]*")}
    prepare("digits", None, tmp_path / "data")
    assert "already prepared" in capsys.readouterr().out
    prepare("digits", str(tmp_path / "source"), tmp_path / "data", check=True)
    assert "all hashes match" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("[a-z]*")} == before


def test_another_source_needs_force(tmp_path):
    one = write_split(tmp_path / "one", seed=1)["test"]
    other = write_split(tmp_path / "other", seed=2)["test"]
    folder = prepare("digits", str(tmp_path / "one"), tmp_path / "data")
    with pytest.raises(UserError, match=r"prepared from .*one, not from .*other"):
        prepare("digits", str(tmp_path / "other"), tmp_path / "data")
    np.testing.assert_array_equal(Shards(folder, "test").images(np.arange(20)), one)
    with pytest.raises(UserError, match=r"was prepared from .*one; say by --source what replaces it"):
        prepare("digits", None, tmp_path / "data", force=True)
    prepare("digits", str(tmp_path / "other"), tmp_path / "data", force=True)
    np.testing.assert_array_equal(Shards(folder, "test").images(np.arange(20)), other)


def test_damage_is_detected_on_the_next_use_or_by_check(tmp_path):
    write_split(tmp_path / "source")
    folder = prepare("digits", str(tmp_path / "source"), tmp_path / "data")
    path = folder / "test-00000.safetensors"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="not the shard that was packed"):
        prepare("digits", None, tmp_path / "data")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as when a disk flips a bit
    prepare("digits", None, tmp_path / "data")
    with pytest.raises(UserError, match="not the shard that was packed") as caught:
        prepare("digits", None, tmp_path / "data", check=True)
    command = re.search(r"run `emnist-dali (.*)`\.", str(caught.value))
    assert CliRunner().invoke(main, shlex.split(command[1])).exit_code == 0
    prepare("digits", None, tmp_path / "data", check=True)


def test_the_command_that_packs_pictures_again(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "source" / part / "a").mkdir(parents=True)
        Image.new("L", (40, 40)).save(tmp_path / "source" / part / "a" / "1.png")
    folder = prepare("own", str(tmp_path / "source"), tmp_path / "data", size=40, orientation="transposed")
    given = f"--split own --source {tmp_path / 'source'} --data-dir {tmp_path / 'data'}"
    assert f"{given} --force --size 40 --orientation transposed`" in repack(folder, read_manifest(folder))


def test_shards_are_hashed_once_per_change(tmp_path, monkeypatch):
    write_split(tmp_path / "source")
    folder = prepare("digits", str(tmp_path / "source"), tmp_path / "data")
    hashed = []
    real = manifest_module.sha256
    monkeypatch.setattr(manifest_module, "sha256", lambda path: hashed.append(path.name) or real(path))
    Shards(folder, "train")
    assert not hashed  # packing has verified them
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)  # with new times
    for _ in range(2):
        Shards(copy, "train")
        Shards(copy, "test")
    assert hashed == ["train-00000.safetensors", "test-00000.safetensors"]


def test_glyphs_have_a_separate_folder(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(prepare_module, "load", lambda *_, **__: drawn)
    folder = prepare("balanced", "glyphs", tmp_path)
    assert folder == tmp_path / "demo" / "balanced"
    assert not (tmp_path / "balanced").exists()
    for option in ({"size": 40}, {"orientation": "upright"}, {"test_fraction": 0.1}):
        with pytest.raises(UserError, match="Glyphs are drawn upright at 28 × 28"):
            prepare("balanced", "glyphs", tmp_path, **option)


def test_a_folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "source" / part / name).mkdir(parents=True)
            for i in range(3):
                picture = Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8))
                picture.save(tmp_path / "source" / part / name / f"{i}.png")
    folder = prepare("pets", str(tmp_path / "source"), tmp_path / "data", size=40)
    shards = Shards(folder, "train")
    assert shards.shape == (40, 40)
    assert shards.manifest.classes == ("cat", "dog")
    with Image.open(tmp_path / "source" / "train" / "dog" / "1.png") as picture:
        np.testing.assert_array_equal(shards.images(np.array([4]))[0], np.asarray(picture))


def test_the_real_splits(real_folder, tmp_path):
    for split, train, test in (("balanced", 96_780, 18_800), ("byclass", 131_387, 116_323)):
        folder = prepare(split, str(real_folder / split), tmp_path)
        manifest = read_manifest(folder)
        assert sum(manifest.counts["train"]) == train
        assert sum(manifest.counts["test"]) == test
        official = {file["name"] for file in manifest.files if file["official"]}
        expected = {file_name("byclass", "test", kind) for kind in ("images", "labels")}
        assert official == (expected if split == "byclass" else set())
        assert json.loads((folder / "manifest.json").read_text())["official"] is False
