import builtins
import json
import sys

import pytest

from emnist_dali.core import documents
from emnist_dali.core.documents import MAX_BYTES, read_document
from emnist_dali.core.errors import UserError

CONTENT = {
    "base": "cpu",
    "data": {"source": "off", "affine": None},
    "training": {"epochs": 8, "lr": 1e-3, "sync": True},
}
YAML = "base: cpu\ndata: {source: off, affine: null}\ntraining:\n  epochs: 8\n  lr: 1e-3\n  sync: true\n"
TOML = 'base = "cpu"\n[data]\nsource = "off"\n[training]\nepochs = 8\nlr = 1e-3\nsync = true\n'


def refused(path):
    with pytest.raises(UserError) as caught:
        read_document(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_three_formats_say_the_same(tmp_path):
    for name in ("a.json", "a.yaml", ".json", ".yml"):
        (tmp_path / name).write_text(json.dumps(CONTENT) if name.endswith("json") else YAML)
        assert read_document(tmp_path / name) == CONTENT
    if sys.version_info >= (3, 11):
        (tmp_path / "a.toml").write_text(TOML)
        assert read_document(tmp_path / "a.toml") | {"data": CONTENT["data"]} == CONTENT  # TOML has no null


def test_yaml_is_that_of_1_2(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("a: [off, no, y, 010, 1_0, 12:30:00, 2026-11-27, 3e4, .5, -0.0, ~]\n")
    expected = ["off", "no", "y", 10.0, "1_0", "12:30:00", "2026-11-27", 3e4, 0.5, 0.0, None]
    assert read_document(path) == {"a": expected}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", '{"a": 1, "a": 2}', "'a' is there twice"),
        ("a.yaml", "a: 1\na: 2\n", "'a' is there twice"),
        ("a.toml", "a = 1\na = 2\n", "overwrite"),
        ("a.yaml", "a: &x [1]\nb: [*x, *x]\n", "line 1: anchors and aliases"),
        ("a.yaml", "a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("a.yaml", "a: !!bool maybe\n", "a tag such as !!bool does not fit its value: KeyError('maybe')"),
        ("a.yaml", "a: !!map [1, 2]\n", "does not fit its value: TypeError"),
        ("a.yaml", "a: !!timestamp x\n", "does not fit its value: AttributeError"),
        ("a.yaml", "a: !!int ''\n", "does not fit its value: IndexError"),
        ("a.yaml", "a: !!float x\n", "could not convert"),
        ("a.yaml", "1: 2\n", "is not text"),
        ("a.json", "[1]", "not a mapping"),
        ("a.yaml", "cpu", "not a mapping"),
        ("a.json", "NaN", "NaN"),
        ("a.json", "{", "JSON"),
        ("a.toml", "=", "TOML"),
        ("a.yaml", "a: [", "YAML"),
        ("a.json", "[" * 30_000, "recursion"),
        ("a.yaml", "[" * 30_000, "recursion"),
        ("a.toml", "a = " + "[\n" * 30_000, "recursion"),
        ("a.toml", "a." * 30_000 + "a = 1", "a line of more than 1,000 characters"),
        ("a.toml", "'a'." * 15_000 + "a = 1", "a line of more than 1,000 characters"),
        ("a.toml", "b = {a='''\n\" ''', " + "a." * 30_000 + 'a="" }', "a line of more than 1,000 characters"),
        ("a.yaml", "a: " + "1" * MAX_BYTES, f"more than {MAX_BYTES:,} bytes"),
    ],
    ids=range(24),
)
def test_what_is_no_document_is_one_sentence(tmp_path, name, content, why):
    if name == "a.toml" and sys.version_info < (3, 11):
        pytest.importorskip("tomli", reason="TOML needs Python 3.11 or tomli")
    (tmp_path / name).write_text(content)
    assert why in refused(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.toml")
    assert "not a regular file" in refused(tmp_path / "a.toml")
    assert "is missing" in refused(tmp_path / "b.toml")


@pytest.mark.parametrize(("name", "package"), [("a.toml", "tomli"), ("a.yaml", "pyyaml")])
def test_a_missing_parser_is_named(tmp_path, monkeypatch, name, package):
    real = builtins.__import__

    def without(module, *arguments):
        if module in ("tomllib", "tomli", "yaml"):
            raise ImportError(module)
        return real(module, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / name).write_text("")
    assert f"`pip install {package}`; install that, or write the file as JSON" in refused(tmp_path / name)


def test_the_formats_are_told_by_their_names():
    assert all(documents.is_document(f"mine{kind}") for kind in documents.FORMATS)
    assert not documents.is_document("cpu")
