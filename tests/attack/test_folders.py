"""A user's folders and files survive where the program is told to write."""

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.data import pack as pack_module
from emnist_dali.data.manifest import read_manifest, verify
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.runs.file_names import FILES
from emnist_dali.runs.folder import RunFolder

from ..data.test_prepare import write_split
from ..training_runs import flags, quick
from .tally import FACTOR, SEED


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder except locks, which may be created."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or (path.is_file() and not path.name.endswith(".emnist-dali.lock"))
    }


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 1, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert message in result.output
    assert result.output.count("\n") == 1


def images(folder: Path, seed: int = 0, classes: tuple[str, ...] = ("cat", "dog"), n: int = 3) -> Path:
    rng = np.random.default_rng(seed)
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                picture = Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8))
                picture.save(folder / part / name / f"{i}.png")
    return folder


# ---- prepare


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_pictures_in_the_folder_of_the_split_survive(force, tmp_path):
    images(tmp_path / "data" / "mine")
    before = contents(tmp_path)
    result = invoke(
        "prepare", "--split", "mine", "--source", tmp_path / "data" / "mine", "--data-dir", tmp_path / "data", *force
    )
    assert_refused(result, "overlap")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("where", [".", "deeper"])
def test_idx_files_in_or_above_the_folder_of_the_split_survive(where, force, tmp_path):
    write_split(tmp_path / "data" / "digits" / where)
    before = contents(tmp_path)
    source = tmp_path / "data" / "digits" / where
    assert_refused(
        invoke("prepare", "--split", "digits", "--source", source, "--data-dir", tmp_path / "data", *force),
        "overlap",
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_official_files_in_the_folder_of_the_split_survive(force, tmp_path, monkeypatch):
    """NIST's files downloaded by hand into data/digits: nothing is fetched, nothing replaced."""
    write_split(tmp_path / "data" / "digits")
    before = contents(tmp_path)
    assert_refused(
        invoke("prepare", "--split", "digits", "--data-dir", tmp_path / "data", *force), "no prepared data"
    )
    assert contents(tmp_path) == before


FOREIGN = {
    "notes": {"thesis.tex": b"years of work"},
    "a web page with a manifest": {"manifest.json": b'{"name": "my app"}', "index.html": b"<p>"},
    "a manifest alone": {"manifest.json": b'{"name": "my app"}'},
    "a broken manifest": {"manifest.json": b'{"format": 1'},
    "shards of somebody else": {"train-00000.safetensors": b"weights"},
    "a folder in it": {"deeper/work.txt": b"x"},
    "a hidden file": {".git": b"gitdir: elsewhere"},
}


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_without_prepared_data_survives(kind, force, tmp_path):
    for name, content in FOREIGN[kind].items():
        path = tmp_path / "thesis" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source = images(tmp_path.parent / f"{tmp_path.name}-source")
    before = contents(tmp_path)
    result = invoke("prepare", "--split", "thesis", "--source", source, "--data-dir", tmp_path, *force)
    assert_refused(result, str(tmp_path / "thesis"))
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match="thesis"):  # nor does an API user lose it
        pack_module.check_replaceable(tmp_path / "thesis")


@pytest.mark.parametrize("added", ["notes.txt", "train-00007.safetensors", "deeper/x", "stats.json", ".emnist"])
def test_prepared_data_with_added_files_survive(added, tmp_path):
    write_split(tmp_path / "source")
    folder = prepare("digits", str(tmp_path / "source"), tmp_path / "data")
    (folder / added).parent.mkdir(exist_ok=True)
    (folder / added).write_text("mine")
    before = contents(folder)
    result = invoke(
        "prepare", "--split", "digits", "--source", tmp_path / "source", "--data-dir", tmp_path / "data", "--force"
    )
    assert_refused(result, "which `prepare` did not write")
    assert contents(folder) == before


NAMES = [
    "",
    ".",
    "..",
    "../docs",
    "docs/deep",
    "/tmp/x",
    "demo",
    "source",
    ".hidden",
    "a\\b",
    " a",
    "a\nb",
    "\x1b[2J",
]
NAMES += ["x" * 300, "\udcff", "\0"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_the_name_of_a_split_cannot_escape_the_data_folder(name, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "work.txt").write_text("mine")
    source = images(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    for words in (["prepare", "--source", source, "--force"], ["train", "--source", source], ["inspect"]):
        result = invoke(*words, "--split", name)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert all(line.isprintable() for line in result.output.splitlines())
        assert result.output.splitlines()[-1].startswith("Error: ")
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "docs", "pictures"]


def test_an_empty_folder_and_a_link_to_another_disk_are_used(tmp_path):
    write_split(tmp_path / "source")
    (tmp_path / "data" / "digits").mkdir(parents=True)
    folder = prepare("digits", str(tmp_path / "source"), tmp_path / "data")
    verify(folder, read_manifest(folder))
    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "digits").symlink_to(tmp_path / "disk" / "digits")
    for force in (False, True):
        folder = prepare("digits", str(tmp_path / "source"), tmp_path / "linked", force=force)
        assert folder.is_symlink()
        verify(tmp_path / "disk" / "digits", read_manifest(folder))
    assert sorted(path.name for path in (tmp_path / "disk").glob("[a-z]*")) == ["digits"]


def test_a_link_named_like_a_temporary_file_is_not_followed(tmp_path):
    write_split(tmp_path / "source")
    (tmp_path / "mine").write_text("years of work")
    folder = prepare("digits", str(tmp_path / "source"), tmp_path / "data")
    for name in ("manifest.json.tmp", "stats-28.json.tmp", ".digits.partial"):
        (folder.parent / name).symlink_to(tmp_path / "mine")
    prepare("digits", str(tmp_path / "source"), tmp_path / "data", force=True)
    assert (tmp_path / "mine").read_text() == "years of work"


@pytest.mark.parametrize("nth", range(6))
def test_a_replacement_that_is_killed_leaves_the_old_data_or_the_new(nth, tmp_path, monkeypatch):
    """Between any two steps of replacing a folder; the next command cleans up."""
    write_split(tmp_path / "one", seed=1)
    write_split(tmp_path / "two", seed=2)
    folder = prepare("digits", str(tmp_path / "one"), tmp_path / "data")
    old = read_manifest(folder).fingerprint

    class Killed(BaseException):
        pass

    calls = []

    def killing(name):
        real = getattr(Path, name)

        def method(path, *arguments, **options):
            calls.append(name)
            if len(calls) > nth:
                raise Killed  # as does any cleanup
            return real(path, *arguments, **options)

        return method

    with monkeypatch.context() as patch:
        real = pack_module._replace_folder

        def replace(new, target):
            for name in ("rename", "unlink", "rmdir"):
                patch.setattr(Path, name, killing(name))
            real(new, target)

        patch.setattr(pack_module, "_replace_folder", replace)
        with suppress(Killed):
            prepare("digits", str(tmp_path / "two"), tmp_path / "data", force=True)
    prepare("digits", None, tmp_path / "data")
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert (manifest.fingerprint == old) == (nth < 2)
    prepare("digits", str(tmp_path / "two"), tmp_path / "data", force=True)
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == ["digits"]


@pytest.mark.parametrize("left", ["manifest.json", "train-00000.safetensors", "mine.txt"])
def test_old_data_whose_removal_was_killed_do_not_block_the_next(left, tmp_path):
    """Whichever file the removal had reached; a foreign file survives and is reported."""
    write_split(tmp_path / "source")
    folder = prepare("digits", str(tmp_path / "source"), tmp_path / "data")
    old = folder.with_name(".digits.emnist-dali-old")
    old.mkdir()
    (old / left).write_text("left")
    if left == "mine.txt":
        with pytest.raises(UserError, match="not empty"):
            prepare("digits", str(tmp_path / "source"), tmp_path / "data", force=True)
        assert (old / left).read_text() == "left"
    else:
        prepare("digits", str(tmp_path / "source"), tmp_path / "data", force=True)
        assert not old.exists()
    verify(folder, read_manifest(folder))


# ---- another --size, other images


def test_another_size_is_refused_and_forced(tmp_path):
    source = images(tmp_path / "pictures")
    words = ["prepare", "--split", "pets", "--source", source, "--data-dir", tmp_path / "data"]
    assert invoke(*words, "--size", 20).exit_code == 0
    assert_refused(invoke(*words, "--size", 28), "was prepared at 20 × 20, not at 28 × 28")
    assert invoke(*words).exit_code == 0  # no size given: any is fine
    assert invoke(*words, "--size", 28, "--force").exit_code == 0
    assert read_manifest(tmp_path / "data" / "pets").shape == (28, 28)


def test_a_size_for_idx_files_is_refused(tmp_path):
    write_split(tmp_path / "source")
    words = ["prepare", "--split", "digits", "--source", tmp_path / "source", "--data-dir", tmp_path / "data"]
    assert_refused(invoke(*words, "--size", 32), "--size is for a folder of images")
    assert not (tmp_path / "data" / "digits").exists()
    assert invoke(*words, "--size", 28).exit_code == 0


CHANGES = {
    "added": lambda source: shutil.copy(source / "train/cat/0.png", source / "train/dog/9.png"),
    "removed": lambda source: (source / "test/dog/1.png").unlink(),
    "changed": lambda source: shutil.copy(source / "train/cat/0.png", source / "train/dog/1.png"),
    "renamed": lambda source: (source / "train/cat/0.png").rename(source / "train/cat/00.png"),
    "moved": lambda source: (source / "train/cat/0.png").rename(source / "train/dog/00.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_have_changed_are_refused(change, tmp_path):
    source = images(tmp_path / "pictures")
    words = ["prepare", "--split", "pets", "--source", source, "--data-dir", tmp_path / "data"]
    assert invoke(*words).exit_code == 0
    before = contents(tmp_path / "data")
    CHANGES[change](source)
    assert_refused(invoke(*words), "are not those that")
    assert contents(tmp_path / "data") == before
    assert invoke(*words, "--force").exit_code == 0
    assert invoke(*words).exit_code == 0


def test_images_with_other_times_only_are_the_same(tmp_path):
    source = images(tmp_path / "pictures")
    words = ["prepare", "--split", "pets", "--source", source, "--data-dir", tmp_path / "data"]
    assert invoke(*words).exit_code == 0
    for path in source.rglob("*.png"):
        os.utime(path, (1, 1))
    for _ in range(2):
        result = invoke(*words)
        assert result.exit_code == 0
        assert "already prepared" in result.output
    shutil.rmtree(source)  # to save space
    assert invoke(*words).exit_code == 0


# ---- runs


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_the_name_of_a_runs_file_survives(name, data_dir, tmp_path):
    """`train --out` overwrites nobody's metrics.jsonl."""
    path = tmp_path / "thesis" / name
    path.parent.mkdir()
    path.write_text("{}")
    before = contents(tmp_path)
    words = ["--split", "small", "--source", "glyphs", "--recipe", "cpu", "--data-dir", data_dir, *flags()]
    words += ["--device", "cpu", "--batch-size", 64, "--steps", 1, "--out", tmp_path / "thesis"]
    result = invoke("train", *words)
    assert result.exit_code == 1
    assert f"{tmp_path / 'thesis'} " in result.output
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path / "thesis") == [name]


def test_a_log_in_its_folder_does_not_prevent_a_run(data_dir, tmp_path):
    """`mkdir out; emnist-dali train --out out | tee out/log` is common."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log").write_text("said")
    (tmp_path / "out" / "notes.md").write_text("mine")
    with RunFolder.create(quick(data_dir, tmp_path / "out")) as run:
        assert run.path == tmp_path / "out"
    assert contents(tmp_path / "out") == {"log": b"said", "notes.md": b"mine"}


@pytest.mark.parametrize("place", ["backup/last.pt", "backup/checkpoints/last.pt", "last.pt"])
def test_a_checkpoint_outside_a_run_overwrites_nothing_around_it(place, trained_run, tmp_path):
    path = tmp_path / "home" / place
    path.parent.mkdir(parents=True)
    shutil.copy(trained_run / "checkpoints" / "last.pt", path)
    (tmp_path / "config.json").write_text('{"mine": true}')
    (tmp_path / "home" / "config.json").write_text('{"mine": true}')
    if place == "backup/checkpoints/last.pt":
        (tmp_path / "home" / "backup" / "metrics.jsonl").write_text("mine")
    before = contents(tmp_path)
    assert_refused(invoke("train", "--resume", path), "is not in a run folder")
    assert contents(tmp_path) == before


def test_a_users_own_step_checkpoints_are_not_deleted(data_dir, tmp_path):
    with RunFolder.create(quick(data_dir, tmp_path / "run")) as run:
        mine = [run.last.with_name(name) for name in ("step-mine.pt", "step-1.pt", "step-000000010.pt")]
        for path in mine:
            path.write_text("mine")
        for step in range(5):
            run.save_checkpoint({"step": step}, keep=2)
        assert all(path.read_text() == "mine" for path in mine)
        assert sorted(path.name for path in run.last.parent.glob("step-0000000?.pt")) == [
            "step-00000003.pt",
            "step-00000004.pt",
        ]


# ---- files that a user names


@pytest.mark.parametrize("command", ["report", "export", "predict", "inspect"])
def test_an_output_file_of_somebody_else_survives(command, trained_run, data_dir, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    out = {
        "report": tmp_path / "thesis.html",
        "export": tmp_path / "README.safetensors",
        "predict": tmp_path / "photo.png",
        "inspect": tmp_path / "thesis.html",
    }[command]
    Image.new("L", (30, 30), 255).save(tmp_path / "photo.png")
    if command != "predict":
        out.write_text("years of work")
    (tmp_path / "README.md").write_text("years of work")
    words = {
        "report": ["report", run, "--out", out],
        "export": ["export", run, "--format", "safetensors", "--output", out],
        "predict": ["predict", run, tmp_path / "photo.png", "--show", out],
        "inspect": ["inspect", "--split", "small", "--source", "glyphs", "--data-dir", data_dir, "--out", out],
    }[command]
    before = contents(tmp_path)
    result = invoke(*words)
    assert result.exit_code == 1
    assert f"{out} already exists and was not written by emnist-dali" in result.output
    assert contents(tmp_path) == before


def test_a_model_card_of_somebody_else_survives(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "README.md").write_text("years of work")
    words = ["export", run, "--format", "safetensors", "--output", tmp_path / "README.safetensors"]
    for _ in range(2):  # it may replace its own output
        result = invoke(*words)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "README.md").read_text() == "years of work"
    assert (tmp_path / "README.safetensors").is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_only_regular_files_are_replaced(kind, trained_run, tmp_path):
    out = tmp_path / "out.html"
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "folder":
        out.mkdir()
    else:
        out.symlink_to("/dev/null" if kind == "device" else tmp_path / "elsewhere")
    before = out.lstat()
    result = invoke("report", trained_run, "--out", out)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert out.lstat().st_mode == before.st_mode
    assert not (tmp_path / "elsewhere").exists()


# ---- shards under a reader


@pytest.mark.parametrize("number", range(40 * FACTOR))
def test_no_flipped_bit_of_prepared_data_is_used(number, folder, tmp_path):
    """One bit anywhere in the folder, with a new modification time: refused, or the same data."""
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("stats*"))
    draw = random.Random(f"{SEED} {number}")
    path = draw.choice(sorted(path for path in copy.iterdir() if path.is_file()))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    expected = Shards(folder, "test")
    everything = np.arange(len(expected))
    try:
        for part in ("train", "unseen"):
            Shards(copy, part)
        shards = Shards(copy, "test")
        assert shards.manifest == expected.manifest
        np.testing.assert_array_equal(shards.images(everything), expected.images(everything))
        np.testing.assert_array_equal(shards.labels(), expected.labels())
    except UserError as error:
        refusal = str(error)
        assert str(copy) in refusal and refusal.isprintable()  # noqa: PT018
