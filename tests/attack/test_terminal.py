"""What reaches a terminal: nothing that it obeys, whatever files, configs and arguments hold; and terminals, pipes
and disks that take nothing."""

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from emnist_dali import cli
from emnist_dali.commands import program
from emnist_dali.core.files import read_json, write_json
from emnist_dali.core.machine import environment
from emnist_dali.core.progress import say
from emnist_dali.runs.file_names import is_run
from emnist_dali.runs.folder import RunFolder
from emnist_dali.tools import doctor

from ..training_runs import flags
from .attempts import attempt, judge
from .test_arguments import picture

# Colours, a title, C1's CSI, a carriage return, two lines, Unicode's line, what turns the reading direction.
HOSTILE = ["\x1b[31m", "\x1b]0;x\x07", "\x9b2J", "a\rb", "a\nb", "a\u2028b", "a\u202egnp.b", "a\u2066b"]
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(doctor, "reachable", lambda url: False)
    monkeypatch.setattr("emnist_dali.tools.sweep_database.OPENING", 0)


def raw(text: str) -> list[str]:
    return [
        character for hostile in HOSTILE for character in hostile if character in text and not character.isprintable()
    ]


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_what_is_said(hostile, capsys):
    say(f"Fold of {hostile}.")
    program.print_lines(f"A class {hostile}.")
    said = capsys.readouterr().out
    assert not [character for character in raw(said) if character != "\n"]
    assert hostile not in said or hostile == "a\nb"  # lines may be several


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_names_of_files_and_folders(hostile, trained_run, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    picture().save(pictures / f"{hostile}.png")
    shutil.copytree(data_dir / "demo" / "small", tmp_path / "data" / hostile)
    shutil.copytree(data_dir / "demo" / "small", tmp_path / hostile)
    (tmp_path / "data" / hostile / "test-00000.safetensors").write_bytes(b"damaged")
    for part in ("train", "test"):
        for name in ("a", hostile):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            picture().save(tmp_path / "images" / part / name / f"{hostile}.png")
    for arguments in (
        ("predict", trained_run, "pictures"),
        ("predict", trained_run, pictures / f"{hostile}.png"),
        ("predict", trained_run, f"{hostile}.png", "--json"),
        ("doctor", "--data-dir", "data"),
        ("doctor", "--data-dir", "data", "--json"),
        ("doctor", "--data-dir", hostile),
        ("prepare", "--split", "own", "--source", "images"),
        ("prepare", "--split", hostile, "--source", "images"),
        ("prepare", "--split", "own", "--source", hostile),
        ("evaluate", hostile),
        ("report", trained_run, "--out", f"{hostile}/x.html"),
        ("train", "--resume", hostile),
        ("train", "--recipe", f"{hostile}.json"),
    ):
        result = attempt(tmp_path, *arguments)
        assert not [character for character in raw(result.output) if character != "\n"], arguments
    json.loads(attempt(tmp_path, "doctor", "--data-dir", "data", "--json").stdout)


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
@pytest.mark.parametrize(
    "place", [("recipe",), ("data", "split"), ("data", "data_dir"), ("model", "model"), ("run", "device")]
)
def test_a_config(place, hostile, trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(trained_run, tmp_path / "run")
    content = read_json(run / "config.json")
    node = content
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = hostile
    write_json(run / "config.json", content)
    write_json(tmp_path / "recipe.json", content)
    for arguments in (
        ("train", "--recipe", "recipe.json"),
        ("evaluate", "run"),
        ("predict", "run", "none.png"),
        ("report", "run"),
        ("export", "run"),
    ):
        result = attempt(tmp_path, *arguments)
        assert result.exit_code == 1
    assert not (tmp_path / "runs").exists()


def console(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp1252"])
def test_a_console_that_lacks_characters(encoding, trained_run, data_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["doctor", "--data-dir", "Ω–×✓"],
        ["doctor", "--json", "--data-dir", "Ω"],
        ["evaluate", str(trained_run)],
        ["compare", str(trained_run), str(trained_run)],
        ["predict", str(trained_run), "«✓».png"],
        ["✓"],
        ["--help"],
        *([name, "--help"] for name in cli.main.commands),
    ):
        out, err = console(encoding), console(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as end:
                cli.main.main(arguments, prog_name="emnist-dali")
        kept = (
            "utf-8" if encoding == "ascii" else encoding
        )  # click takes an ASCII console for one that was not set up
        said = [stream.buffer.getvalue().decode(kept) for stream in (out, err)]
        assert end.value.code in (0, 1, 2)
        assert any(said)
        if "--json" in arguments:
            assert "Ω" in json.loads(said[0])["checks"][-4]["found"]  # nothing of it is lost


def one_step(data_dir: Path, out: Path) -> list[str]:
    given = ["--source", "glyphs", "--data-dir", data_dir, "--recipe", "cpu", "--device", "cpu", "--batch-size", 64]
    arguments = ["train", "--split", "small", *given, *flags(image_size=16), "--steps", 1, "--out", out]
    return [str(argument) for argument in arguments]


def ended(monkeypatch, stdout: io.TextIOBase, *arguments: object) -> tuple[object, str]:
    """The exit code, and what stderr has, of a command whose stdout is `stdout`."""
    err = console("utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as end:
            cli.main.main([str(argument) for argument in arguments], prog_name="emnist-dali")
    return end.value.code, err.buffer.getvalue().decode()


def closed_pipe() -> io.TextIOBase:
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w")


def full() -> io.TextIOBase:
    return open("/dev/full", "w")


def drop(stream: io.TextIOBase) -> None:
    """Without its buffer, which nothing takes."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
    stream.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("make", [closed_pipe, full], ids=["a closed pipe", "a full disk"])
def test_a_training_goes_on_where_nothing_takes_what_it_says(make, data_dir, tmp_path, monkeypatch):
    stdout = make()
    code, said = ended(monkeypatch, stdout, *one_step(data_dir, tmp_path / "run"))
    drop(stdout)
    assert (code, said) == (0, "")
    assert is_run(tmp_path / "run")
    assert [entry["kind"] for entry in RunFolder(tmp_path / "run").entries()] == ["epoch", "test", "unseen"]
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("command", ["evaluate", "compare", "predict", "doctor", "export", "report"])
def test_a_result_that_finds_no_space_is_told(command, trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(trained_run, tmp_path / "run")
    picture().save(tmp_path / "one.png")
    more = {"compare": [run], "predict": ["one.png"], "export": ["--format", "safetensors"]}.get(command, [])
    stdout = full()
    code, said = ended(monkeypatch, stdout, command, *([] if command == "doctor" else [run, *more]))
    drop(stdout)
    assert code == 1
    assert (
        said == "Error: A file cannot be used (No space left on device); check its permissions and the free space.\n"
    )


def test_a_password_reaches_no_file(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"nodriver://me:{SECRET}@host/db?password={SECRET}"
    words = ("sweep", "--source", "glyphs", "--data-dir", data_dir, "--split", "small", "--storage", address)
    monkeypatch.setattr(sys, "argv", ["emnist-dali", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main.main(prog_name="emnist-dali")
    assert end.value.code == 1
    assert sys.argv[-1] == "nodriver://me:***@host/db?password=***"  # which wandb keeps
    monkeypatch.setattr(sys, "argv", ["emnist-dali", *map(str, words)])
    assert environment()["command"].endswith(" nodriver://me:***@host/db?password=***")


@pytest.mark.parametrize(
    "address",
    [
        f"mysql://me:{SECRET}@host/db", f"postgresql+psycopg2://me:{SECRET}@[::1]:1/db",
        f"mysql://me:p/{SECRET}:x@host/db", f"mysql://:{SECRET}@host", f"nodriver://host/db?user=me&password={SECRET}",
        f"nodriver://host/db?sslpassword={SECRET}&x=1", f"MYSQL://me:{SECRET}@host",
    ],
)  # fmt: skip
def test_a_password_reaches_no_terminal(address, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--split", "small", "--source", "glyphs", "--data-dir", data_dir, "--recipe", "cpu", "--device", "cpu")
    result = attempt(tmp_path, "sweep", *given, "--trials", "1", "--storage", address)
    assert result.exit_code == 1
    assert SECRET not in result.output


def test_a_message_is_cut_in_its_middle():
    result = CliRunner().invoke(cli.main, ["evaluate", "x" * 100_000])
    judge(result)
    assert len(result.stderr) < 3_000
    assert result.stderr.rstrip().endswith("4,096.")
