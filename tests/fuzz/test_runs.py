import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from emnist_dali.config import Config, Model
from emnist_dali.data.stats import Stats
from emnist_dali.models.build import build_model
from emnist_dali.recipes import RECIPES
from emnist_dali.runs.checkpoint import load_state, load_weights
from emnist_dali.runs.folder import RunFolder

from .mutate import broken, broken_json, examples, json_bytes

NAME = "test_efficientnet"
STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "step": 3, "config": {"rotation": (0.1, 0.2)}}
CONFIGS = {name: recipe("balanced") for name, recipe in RECIPES.items()}
ABOUT = {"model": NAME, "classes": ["0", "é"], "stats": [0.17, 0.33], "image_size": 32}


class Payload:
    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


def saved(state: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def repacked(checkpoint: bytes, pickled: bytes, method: int) -> bytes:
    """A checkpoint with another pickle in it and valid checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for member in old.infolist():
            content = pickled if member.filename.endswith("data.pkl") else old.read(member)
            new.writestr(member.filename, content)
    return buffer.getvalue()


def pickle_of(checkpoint: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as members:
        return members.read(next(name for name in members.namelist() if name.endswith("data.pkl")))


WHOLE, OLD = saved(STATE), saved(STATE, _use_new_zipfile_serialization=False)
PAYLOADS = [saved({"step": Payload()}), pickle.dumps({"step": Payload()}, 2), pickle.dumps(Payload(), 4)]
CHECKPOINTS = st.one_of(
    broken(WHOLE, WHOLE, OLD, *PAYLOADS),
    st.builds(
        repacked,
        st.just(WHOLE),
        broken(pickle_of(WHOLE), pickle_of(PAYLOADS[0])),
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    ),
    st.sampled_from([*PAYLOADS, saved([1, 2]), saved(torch.ones(3)), saved(5)]),
)


@examples(100)
@given(CHECKPOINTS)
def test_checkpoints(attempt, place, content):
    path = place / "last.pt"
    path.write_bytes(content)
    state = attempt(lambda: load_state(path), path)
    assert state is None or isinstance(state, dict)
    assert not Payload.ran


def bomb(mebibytes: int) -> bytes:
    """A checkpoint whose tensor is zeros, deflated to a thousandth."""
    one = torch.zeros(2**18)
    whole = saved({"weight": one})
    pickled = pickle_of(whole).replace(b"J\x00\x00\x04\x00", struct.pack("<ci", b"J", mebibytes * 2**18))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            if member.filename.endswith("data.pkl"):
                new.writestr(member.filename, pickled)
            elif member.file_size == one.nbytes:
                with new.open(member.filename, "w") as stream:
                    for _ in range(mebibytes):
                        stream.write(bytes(2**20))
            else:
                new.writestr(member.filename, old.read(member))
    return buffer.getvalue()


@pytest.mark.parametrize("mebibytes", [1, 64])
def test_checkpoint_bombs(attempt, place, mebibytes):
    path = place / "last.pt"
    path.write_bytes(bomb(mebibytes))
    assert attempt(lambda: load_state(path), path) is None


WEIGHTS = save({"a": torch.ones(2, 3), "b": torch.arange(4)}, {"about": json.dumps(ABOUT)})
HEADER = struct.unpack_from("<Q", WEIGHTS)[0]


def with_header(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + WEIGHTS[8 + HEADER :]


def about(text: str) -> bytes:
    return save({"a": torch.ones(2)}, {"about": text})


EXPORTS = st.one_of(
    broken(WEIGHTS),
    broken_json(json.loads(WEIGHTS[8 : 8 + HEADER])).map(with_header),
    broken_json(ABOUT).map(json.dumps).map(about),
    st.just(about("[" * 100_000)),
)


@examples(100)
@given(EXPORTS)
@example(about(json.dumps({**ABOUT, "stats": [0.17, 0.33, None]})))
def test_exported_weights(attempt, place, content):
    path = place / "best.safetensors"
    path.write_bytes(content)
    loaded = attempt(lambda: load_weights(path), path)
    if loaded is not None:
        tensors, what = loaded
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
        assert all(isinstance(name, str) for name in what["classes"])
        stats = Stats(*what["stats"])
        assert 0 <= stats.mean <= 1
        assert 0 < stats.std <= 1
        assert isinstance(stats.equalize, bool)


@examples(120)
@given(st.sampled_from(sorted(CONFIGS)).flatmap(lambda name: json_bytes(CONFIGS[name].to_dict())))
def test_configs(attempt, place, content):
    path = place / "config.json"
    path.write_bytes(content)
    config = attempt(lambda: RunFolder(place).config(), path)
    if config is not None:
        assert isinstance(config, Config)
        assert type(config.training.epochs) is int
        assert type(config.training.lr) is float
        assert type(config.run.device) is str


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> dict[str, bytes]:
    state = timm.create_model(NAME).state_dict()
    path = tmp_path_factory.mktemp("weights") / "rgb.safetensors"
    save_file(state, path)
    old = saved(state, _use_new_zipfile_serialization=False)
    return {".safetensors": path.read_bytes(), ".pth": saved(state), ".bin": old}


@examples(24)
@given(st.data())
def test_pretrained_weights(attempt, place, pretrained, data):
    suffix = data.draw(st.sampled_from([".safetensors", ".pth", ".bin", ".npz", ""]))
    whole = pretrained.get(suffix, pretrained[".pth"])
    content = data.draw(st.one_of(broken(whole), broken(whole[:4096]), st.sampled_from([*PAYLOADS, WHOLE, WEIGHTS])))
    path = place / f"weights{suffix}"
    path.write_bytes(content)
    # torch allocates what the lengths in an old pickle claim, up to 4 GiB, and fills what the file has.
    net = attempt(lambda: build_model(Model(model=NAME, weights=str(path)), 10), path, reserves=True)
    assert net is None or net.conv_stem.in_channels == 1
    assert not Payload.ran


def test_a_bomb_among_pretrained_weights(attempt, place):
    path = place / "weights.pth"
    path.write_bytes(bomb(64))
    assert attempt(lambda: build_model(Model(model=NAME, weights=str(path)), 10), path) is None


def test_intact_files_are_read(attempt, place: Path):
    path = place / "whole"
    path.write_bytes(WHOLE)
    assert torch.equal(attempt(lambda: load_state(path), path)["model"]["weight"], STATE["model"]["weight"])
    path.write_bytes(WEIGHTS)
    tensors, what = attempt(lambda: load_weights(path), path)
    assert what == ABOUT
    assert torch.equal(tensors["b"], torch.arange(4))
    for config in CONFIGS.values():
        (place / "config.json").write_text(json.dumps(config.to_dict()))
        assert attempt(lambda: RunFolder(place).config(), place) == config
