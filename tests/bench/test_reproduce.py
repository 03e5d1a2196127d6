"""`make reproduce` from end to end: a local stand-in of NIST's server, drawn digits, and two tiny trainings."""

import gzip
import hashlib
import io
import json
import multiprocessing
import signal
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import reproduce
from emnist_dali import cli
from emnist_dali.data import download, emnist, glyphs

from ..archive_server import serving
from ..idx_files import idx_bytes

CLASSES = emnist.SPLITS["digits"].classes
TINY = {"model.model": "test_efficientnet", "model.pretrained": "false", "data.image_size": 16, "data.batch_size": 64,
        "training.epochs": 1, "run.amp": "off"}  # fmt: skip


@pytest.fixture
def nist(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Serves drawn digits, whose sizes and hashes are patched in as those of the official files."""
    buffer, drawn = io.BytesIO(), glyphs.draw(CLASSES, per_class=30, test_per_class=5)
    with zipfile.ZipFile(buffer, "w") as archive:
        for part in ("train", "test"):
            for kind, array in zip(("images", "labels"), drawn[part], strict=True):
                name = emnist.file_name("digits", part, kind)
                content = gzip.compress(idx_bytes(array.transpose(0, 2, 1) if kind == "images" else array), mtime=0)
                official = emnist.OfficialFile(hashlib.sha256(content).hexdigest(), len(content))
                monkeypatch.setitem(emnist.OFFICIAL_FILES, name, official)
                archive.writestr(f"gzip/{name}", content)
    split = emnist.Split(classes=CLASSES, train=len(drawn["train"][0]), test=len(drawn["test"][0]))
    monkeypatch.setitem(emnist.SPLITS, "digits", split)
    with serving(buffer.getvalue()) as server:
        monkeypatch.setattr(download, "fetch", partial(download.fetch, url=server.url, delays=()))
        yield server


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The trainings that were started, each in this process, which saves the ten seconds of a new one."""
    words_of = []

    def call(words: list[str]) -> int:
        assert words[:3] == [sys.executable, "-m", "emnist_dali"]
        words_of.append(words[3:])
        return CliRunner().invoke(cli.main, words[3:]).exit_code

    monkeypatch.setattr(reproduce, "call", call)
    return words_of


def command(folder: Path, *more: str) -> Result:
    where = [
        "--data-dir",
        folder / "data",
        "--out",
        folder / "runs",
        "--records",
        folder,
        "--results",
        folder / "R.md",
    ]
    what = ["--split", "digits", "--recipe", "cpu", "--seeds", "2", "--device", "cpu", "--no-check", *more]
    settings = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    return CliRunner().invoke(reproduce.main, [*map(str, where), *what, *settings])


def record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("reproduce-*.json")
    return json.loads(path.read_text())


def row(folder: Path) -> list[str]:
    (line,) = [line for line in (folder / "R.md").read_text().splitlines() if line.startswith("| digits")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_it_fetches_trains_and_writes_rows_and_repeated_does_only_what_failed(tmp_path, nist, started):
    (tmp_path / "R.md").write_text("# Results\n\nHand-written.\n\n## Not measured yet\n\nMuch.\n")
    (tmp_path / "runs").mkdir()
    blocked = tmp_path / "runs" / "digits-cpu-0"
    blocked.write_text("a file where the run folder would be")
    first = command(tmp_path)
    assert (first.exit_code, type(first.exception)) == (1, SystemExit)
    assert "digits-cpu-0 failed" in first.output
    assert "2 trainings, 2 of them not complete yet" in first.output
    assert "is not known" in first.output
    assert nist.ranges_requested
    assert [run["seed"] for run in record(tmp_path)["runs"]] == [1]
    assert record(tmp_path)["failures"].keys() == {"digits-cpu-0"}
    assert record(tmp_path)["data"]["digits"]["official"]
    assert row(tmp_path)[2] == "1"

    blocked.unlink()
    nist.ranges_requested.clear()
    started.clear()
    again = command(tmp_path)
    assert again.exit_code == 0, again.output
    assert not nist.ranges_requested
    assert [words[words.index("--seed") + 1] for words in started] == ["0"]
    runs = record(tmp_path)["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    text = (tmp_path / "R.md").read_text()
    assert text.count("## Reproduced on ") == 1
    assert text.startswith("# Results\n\nHand-written.\n\n## Not measured yet\n\nMuch.\n")
    data, shown, seeds, _, accuracy, *_ = row(tmp_path)
    assert data == f"digits, official, `{record(tmp_path)['data']['digits']['fingerprint'][:12]}`"
    assert shown.startswith("`emnist-dali train --split digits --recipe cpu --set ")
    assert seeds == "0, 1"
    mean = 100 * (runs[0]["accuracy"] + runs[1]["accuracy"]) / 2
    assert accuracy.startswith(f"{mean:.2f} ± ")

    command(tmp_path, "--seeds", "1")  # the other seed stays, and so does its row
    assert sorted(run["seed"] for run in record(tmp_path)["runs"]) == [0, 1]
    assert row(tmp_path)[2] == "0, 1"

    other = command(tmp_path, "--set", "training.lr=0.5")  # complete runs of other settings are not passed off
    assert (other.exit_code, type(other.exception)) == (1, SystemExit)
    assert "holds a complete run with other settings; choose another --out" in other.output
    assert not started[1:]
    assert row(tmp_path)[2] == "0, 1"  # which stay, as they do where their data cannot be fetched
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    command(tmp_path, "--source", str(tmp_path / "missing"))
    assert "digits" in record(tmp_path)["failures"]
    assert row(tmp_path)[2] == "0, 1"


def test_a_resumed_run_is_not_timed():
    run = {
        "split": "digits", "recipe": "cpu", "seed": 0, "command": "x --seed 0", "accuracy": 0.5, "macro_f1": 0.4,
        "seconds": 10.0, "images_per_second": 3.0, "config": {"data": {"val_fraction": 0.05}}, "machine": {},
    }  # fmt: skip
    resumed = {**run, "seed": 1, "seconds": 1.0, "machine": {"resumed": [{}]}}
    data = {"digits": {"official": False, "fingerprint": "f"}}
    assert reproduce.row([run, resumed], data).endswith("| 10 s, 3 img/s |")
    assert reproduce.row([resumed], data).endswith("| not timed: resumed |")
    assert "not the official data" in reproduce.row([run], data)


def test_a_section_is_replaced_between_its_neighbours(tmp_path):
    machine = {"gpu": "GPU", "time": "2026-01-01T", "packages": {}, "gpu_driver": "1", "gpu_power_limit_watts": 700.0}
    document = {"benchmark": "reproduce", "machine": machine, "device": "cuda", "data": {}, "runs": []}
    document |= {"failures": {"byclass": "r\\1"}}
    results = tmp_path / "R.md"
    results.write_text("# Results\n\n## Reproduced on GPU\n\nold\n\n## Next\n\nkept\n")
    for _ in range(2):
        reproduce.save(document, tmp_path / "r.json", results)
        text = results.read_text()
        assert text.startswith("# Results\n\n## Reproduced on GPU\n")
        assert text.endswith("\n\n## Next\n\nkept\n")
        assert "old" not in text
        assert "driver 1, power limit 700 W" in text
        assert "Not measured, byclass: r\\1" in text


def test_what_nvidia_smi_does_not_tell_is_left_out():
    machine = {"gpu": "GPU", "time": "2026-01-01T", "packages": {}, "gpu_driver": None, "gpu_power_limit_watts": None}
    document = {"machine": machine, "device": "cuda", "data": {}, "runs": [], "failures": {}}
    assert "None" not in reproduce.section(document, "r.json")


def a_run(seed: int = 0, settings: str = "", **machine) -> dict[str, Any]:
    about = {"gpu": None, "cpu": "CPU", "cpus": 2, "time": "2026-01-01T", "packages": {}, **machine}
    return {
        "split": "digits", "recipe": "cpu", "seed": seed, "command": f"emnist-dali train{settings} --seed {seed}",
        "fingerprint": "f", "accuracy": 0.5, "macro_f1": 0.4, "seconds": 10.0, "images_per_second": 3.0,
        "config": {"data": {"val_fraction": 0.05}, "run": {"device": "cuda" if about["gpu"] else "cpu"}},
        "machine": about,
    }  # fmt: skip


DATA = SimpleNamespace(fingerprint="f", official=False, counts={})


def test_runs_of_other_settings_have_their_own_row(tmp_path):
    document = reproduce.opened(tmp_path / "r.json", a_run()["machine"], "cpu")
    reproduce.set_data(document, "digits", DATA)
    for run in (a_run(), a_run(settings=" --set a=1"), a_run(seed=1), a_run()):
        reproduce.record(run, DATA, document, tmp_path / "r.json", tmp_path / "R.md")
    reproduce.save(document, tmp_path / "r.json", tmp_path / "R.md")
    assert len(document["runs"]) == 3
    rows = [line.split("|")[2:4] for line in (tmp_path / "R.md").read_text().splitlines() if "digits" in line]
    assert rows == [[" `emnist-dali train --seed N` ", " 0, 1 "], [" `emnist-dali train --set a=1 --seed N` ", " 0 "]]
    reproduce.set_data(document, "digits", SimpleNamespace(fingerprint="other", official=False, counts={}))
    assert not document["runs"]


def test_another_machines_runs_are_in_its_own_section_and_file(tmp_path):
    document = reproduce.opened(tmp_path / "reproduce-mine.json", a_run()["machine"], "cpu")
    reproduce.set_data(document, "digits", DATA)
    for seed in (0, 1):
        run = a_run(seed, gpu="Other GPU")
        reproduce.record(run, DATA, document, tmp_path / "reproduce-mine.json", tmp_path / "R.md")
    assert not document["runs"]
    assert "## Reproduced on Other GPU\n" in (tmp_path / "R.md").read_text()
    assert row(tmp_path)[2] == "0, 1"
    assert len(json.loads((tmp_path / "reproduce-other-gpu.json").read_text())["runs"]) == 2


def test_a_check_that_passed_is_not_repeated_nor_is_another_machines_taken(tmp_path, monkeypatch):
    def write(name: str, code: int | None) -> None:
        document = {"benchmark": "gpu_check", "parts": {"tests": {"exit_code": code}}}
        (tmp_path / f"check-{name}.json").write_text(json.dumps(document))

    def call(words: list[str]) -> int:
        calls.append(words)
        write("a-cpu-20260101", codes.pop())
        return 0

    machine = {"gpu": "GPU", "cpu": "A CPU"}
    calls, codes = [], [0, None]
    monkeypatch.setattr(reproduce, "call", call)
    write("gpu-20260102", 0)
    write("a-cpu-2-20260102", 0)
    assert reproduce.checked(tmp_path, "data", "cpu", machine)[1] == ["tests"]  # cut off: no exit code
    assert reproduce.checked(tmp_path, "data", "cpu", machine)[1] == []
    assert reproduce.checked(tmp_path, "data", "cpu", machine)[1] == []
    assert reproduce.checked(tmp_path, "data", "cuda:0", machine)[1] == []
    assert len(calls) == 2


def test_a_part_that_cannot_be_fetched_leaves_the_rest(tmp_path):
    failures = {}
    assert reproduce.fetch("digits", str(tmp_path / "missing"), str(tmp_path / "data"), failures) is None
    assert failures.keys() == {"digits"}


def test_a_training_that_a_signal_stopped_ends_the_command(tmp_path, nist, monkeypatch):
    monkeypatch.setattr(reproduce, "call", lambda words: 143)
    stopped = command(tmp_path)
    assert stopped.exit_code == 1
    assert "Aborted" in stopped.output


def test_a_process_has_its_exit_code():
    assert reproduce.call([sys.executable, "-c", "raise SystemExit(3)"]) == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_ends_the_training_and_is_awaited(tmp_path, signum):
    trap = f"trap 'echo %s >> {tmp_path}/end; exit 0' %s;"
    body = trap % ("hangup", "HUP") + trap % ("terminated", "TERM") + f"kill -{signum} $PPID; sleep 20 & wait"

    def run() -> None:
        for handled in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(handled, signal.SIG_DFL)
        with pytest.raises(click.Abort):
            reproduce.call(["sh", "-c", body])
        assert signal.getsignal(signum) == signal.SIG_DFL

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 0
    # Not SIGTERM: where a training has had one already, the second would end it without a checkpoint.
    assert (tmp_path / "end").read_text() == "hangup\n"
