import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, sha256, write_atomic, write_json
from emnist_dali.runs.checkpoint import load_state, load_weights, save_state, save_weights


def small_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 3, 1))
    return model.to(memory_format=torch.channels_last)


def refused(action: Callable, path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


def state(seed: int = 0) -> dict:
    model = small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "ema": None,
        "optimizer": optimizer.state_dict(),
        "step": 12,
        "best": 0.25,
        "trackers": {"wandb": "id"},
        "config": {"data": {"affine": {"rotation": (0.1, 0.2)}, "flip": False}},
    }


def save_small_state(path: Path) -> None:
    save_state(path, {"step": 1, "model": {}})


def save_small_weights(path: Path) -> None:
    save_weights(path, small_model(), {})


WRITERS = [
    save_small_state,
    save_small_weights,
    lambda path: write_json(path, {}),
    lambda path: write_atomic(path, b"new"),
]
writers = pytest.mark.parametrize("write", WRITERS, ids=["state", "weights", "json", "bytes"])


def test_a_state_comes_back_as_it_was(tmp_path):
    path = tmp_path / "last.pt"
    saved = state()
    save_state(path, saved)
    loaded = load_state(path)
    assert equal(loaded, saved)
    restored = small_model(seed=1)
    restored.load_state_dict(loaded["model"])
    torch.optim.AdamW(restored.parameters()).load_state_dict(loaded["optimizer"])
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_later_state_replaces_an_earlier_one(tmp_path):
    path = tmp_path / "last.pt"
    save_state(path, state())
    save_state(path, {"step": 13})
    assert load_state(path) == {"step": 13}


class Payload:
    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


def dump_old(content: dict, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("dump", [torch.save, dump_old])
def test_a_checkpoint_runs_no_code(tmp_path, dump):
    path = tmp_path / "foreign.pt"
    dump({"step": Payload()}, path)
    refused(load_state, path, "is not a valid checkpoint")
    assert not Payload.ran


@writers
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write, failing):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    refused(write, path, "could not be written", "No space left on device")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@writers
def test_content_is_synced_before_the_rename(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    synced, fsync = [], os.fsync

    def watched(descriptor):
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", watched)
    write(path)
    assert (path.stat().st_ino, path.stat().st_size, False) in synced


def test_unwritable_paths(tmp_path):
    refused(save_small_state, tmp_path / "missing folder" / "last.pt", "could not be written")
    (tmp_path / "folder").mkdir()
    refused(save_small_state, tmp_path / "folder", "could not be written")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    refused(save_small_state, tmp_path / "file" / "last.pt", "could not be written")


ABOUT = {"model": "small", "classes": ["é", "0"], "stats": [0.1, 0.2], "val_accuracy": 0.5, "image_size": 32}


def test_weights_and_about_come_back_as_they_were(tmp_path):
    path = tmp_path / "best.safetensors"
    model = small_model()
    save_weights(path, model, ABOUT)
    tensors, about = load_weights(path)
    assert about == ABOUT
    assert equal(dict(model.state_dict()), tensors)
    restored = small_model(seed=1)
    restored.load_state_dict(tensors)
    images = torch.ones(1, 2, 8, 8)
    assert torch.equal(restored.eval()(images), model.eval()(images))


def test_saving_leaves_the_model_channels_last(tmp_path):
    model = small_model()
    save_weights(tmp_path / "best.safetensors", model, {})
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_loaded_weights_outlive_their_file(tmp_path):
    path = tmp_path / "best.safetensors"
    save_weights(path, small_model(), ABOUT)
    tensors, _ = load_weights(path)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    save_weights(path, small_model(seed=1), ABOUT)
    assert equal(tensors, before)


@pytest.mark.parametrize("load", [load_state, load_weights, read_json])
def test_missing_files(tmp_path, load):
    refused(load, tmp_path / "nothing", "is missing")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path, share):
    for load, write in ((load_state, save_small_state), (load_weights, save_small_weights)):
        path = tmp_path / "file"
        write(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        refused(load, path)


@pytest.mark.parametrize("load", [load_state, load_weights, read_json])
def test_foreign_files(tmp_path, load):
    path = tmp_path / "file"
    for content in (b"A line of text.", b"\x00\xff" * 500):
        path.write_bytes(content)
        refused(load, path)


@pytest.mark.parametrize("load", [load_state, load_weights, read_json])
def test_a_folder_in_place_of_the_file(tmp_path, load):
    refused(load, tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"about": "no JSON"}])
def test_foreign_weights(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path, metadata)
    refused(load_weights, path, "does not hold weights of an emnist-dali model")


def test_json_comes_back_as_it_was(tmp_path):
    path = tmp_path / "file.json"
    content = {"Größe": [1, 2.5, None, True], "nested": {"a": "±"}}
    write_json(path, content)
    assert read_json(path) == content
    assert "Größe" in path.read_text(encoding="utf-8")
    assert path.read_bytes().endswith(b"}\n")


def test_content_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {"set": {1}})
    assert read_json(path) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_truncated_json_names_its_file(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(list(range(9)))[:-2])
    refused(read_json, path, "JSON")


def test_sha256_of_more_than_one_read(tmp_path):
    path = tmp_path / "zeros"
    path.write_bytes(b"\x00" * ((1 << 20) + 1))
    # From sha256sum.
    assert sha256(path) == "2cb74edba754a81d121c9db6833704a8e7d417e5b13d1a19f4a52f007d644264"
