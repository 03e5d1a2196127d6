"""Files and folders without read or write permission, for every command.

Root ignores permissions, so it becomes nobody for a while.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emnist_dali.core.files import read_json, write_json
from emnist_dali.models import build
from emnist_dali.tools import doctor

from .attempts import attempt
from .test_arguments import COMMANDS, picture

NOBODY = 65534
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")

SPLIT, BEST, LAST = "data/demo/small", "run/checkpoints/best.safetensors", "run/checkpoints/last.pt"
TRAIN, RESUME = COMMANDS["train"], ("train", "--resume", "run", "--data-dir", "data")
ON_A_RUN = ("evaluate", "compare", "report", "predict", "export")

# Command, forbidden path, its mode, more arguments.
CASES: list[tuple[str, str, int, tuple[str, ...]]] = [
    *(
        (command, place, 0, ())
        for command in ("prepare", "inspect", "train", "evaluate", "sweep", "audit", "doctor")
        for place in ("data", SPLIT, f"{SPLIT}/manifest.json", f"{SPLIT}/train-00000.safetensors")
    ),
    *(("evaluate", f"{SPLIT}/{name}", 0, ()) for name in ("test-00000.safetensors", "stats-24.json")),
    *(
        (command, place, 0, ())
        for command in ON_A_RUN
        for place in ("run", "run/config.json", "run/metrics.jsonl", BEST, "run/checkpoints", "run/env.json")
    ),
    *(("compare", f"run/predictions-{part}.safetensors", 0, ()) for part in ("test", "unseen")),
    *(("report", place, 0, ()) for place in ("run/predictions-test.safetensors", SPLIT)),
    *((command, "run", 0o555, ()) for command in ON_A_RUN),
    *(("train", place, 0o555, ()) for place in (".", "data", SPLIT)),
    *(("resume", place, 0, ()) for place in ("run", LAST, "run/checkpoints", "run/config.json", "run/metrics.jsonl")),
    *(("resume", place, 0o555, ()) for place in ("run", "run/checkpoints")),
    *(("resume", place, 0o444, ()) for place in ("run/config.json", "run/metrics.jsonl", "run/env.json")),
    *((command, ".", 0o555, ()) for command in ("inspect", "sweep", "audit", "doctor", "prepare", "predict")),
    *((command, "out", mode, ("--out", "out/x")) for command in ("train", "sweep", "audit") for mode in (0, 0o555)),
    *((command, "out", mode, ("--out", "out/x.html")) for command in ("inspect", "report") for mode in (0, 0o555)),
    *((command, "page.html", 0, ("--out", "page.html")) for command in ("inspect", "report")),
    *(("predict", "out", mode, ("--show", "out/x.png")) for mode in (0, 0o555)),
    *(("export", "out", mode, ("--output", "out/x.safetensors")) for mode in (0, 0o555)),
    *(("predict", place, 0, ("pictures",)) for place in ("one.png", "pictures", "pictures/one.png")),
    *(("prepare", "out", mode, ("--data-dir", "out", "--split", "digits")) for mode in (0, 0o555)),
    *(("prepare", place, 0, ("--force", "--source", "pictures")) for place in ("pictures", "pictures/one.png")),
    ("prepare", SPLIT, 0o555, ("--force", "--verify")),
    ("prepare", "data/demo", 0o555, ("--force",)),
    ("train", "recipe.json", 0, ("--recipe", "recipe.json")),
    ("train", "recipe.json", 0, ("--weights", "recipe.json")),
    ("sweep", "sweep.db", 0, ()),
    ("sweep", "sweep.db", 0o444, ()),
    ("sweep", "out", 0o555, ("--storage", "sqlite:///out/sweep.db")),
    ("serve", BEST, 0, ()),
    ("serve", "run/config.json", 0, ()),
]


@contextmanager
def nobody() -> Iterator[None]:
    if ROOT:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if ROOT:
            os.seteuid(0)
            os.setegid(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(doctor, "reachable", lambda url: False)
    monkeypatch.setattr(build, "reachable", lambda url: False)
    monkeypatch.setattr("emnist_dali.tools.sweep_database.OPENING", 0)


@pytest.fixture(scope="module")
def whole(data_dir, trained_run) -> Iterator[Path]:
    """Everything that the commands use."""
    place = Path(tempfile.mkdtemp(prefix="permissions-"))  # accessible to nobody, unlike tmp_path
    place.chmod(0o755)
    shutil.copytree(data_dir, place / "whole" / "data")
    shutil.copytree(trained_run, place / "whole" / "run")
    config = read_json(place / "whole" / "run" / "config.json")
    config["data"]["data_dir"] = "data"
    write_json(place / "whole" / "run" / "config.json", config)
    for name in ("out", "pictures", "tmp"):
        (place / "whole" / name).mkdir()
    for path in (place / "whole" / "one.png", place / "whole" / "pictures" / "one.png"):
        picture().save(path)
    (place / "whole" / "recipe.json").write_text("{}")
    yield place / "whole"
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def loaded(whole) -> Path:
    """`whole`, after every command has run once and loaded its modules, which nobody cannot import."""
    there = whole.with_name("loaded")
    shutil.copytree(whole, there)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.setattr(tempfile, "tempdir", str(there / "tmp"))
        for command, arguments in COMMANDS.items():
            if command not in ("serve", "push"):
                show = ("--show", "x.png") if command == "predict" else ()
                assert attempt(there, command, *arguments, *show).exit_code == 0
    shutil.rmtree(there)
    return whole


def contents(place: Path) -> dict[str, Any]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0]} {case[1]} {case[2]:o} {' '.join(case[3])}".strip()
)
def test_a_path_without_permission(case, loaded, monkeypatch):
    command, forbidden, mode, more = case
    place = loaded.with_name("case")
    shutil.copytree(loaded, place)
    try:
        if forbidden in ("sweep.db", "page.html"):
            (place / forbidden).write_bytes(b"emnist-dali:generated" if "html" in forbidden else b"")
        if ROOT:
            for path in (place, *place.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        before = contents(place)
        monkeypatch.chdir(place)
        monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
        kept = (place / forbidden).stat().st_mode
        (place / forbidden).chmod(mode)
        try:
            with nobody():
                if os.access(forbidden, os.W_OK, effective_ids=True):
                    pytest.skip("permissions do not bind here")
                arguments = RESUME if command == "resume" else (command, *COMMANDS[command], *more)
                result = attempt(place, *arguments)
        finally:
            (place / forbidden).chmod(kept)
        after = contents(place)
        assert result.exit_code in (0, 1)
        assert "Traceback" not in result.output
        lost = {name for name in before if after.get(name) != before[name]}
        if result.exit_code:
            assert not lost - {"sweep.db"}
            assert not list(place.glob("runs/*/config.json"))
            assert not [name for name in after if name.endswith("-tmp")]
    finally:
        monkeypatch.chdir("/")
        shutil.rmtree(place)
