"""Small runs on drawn glyphs: how they are started, ended and compared."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emnist_dali import recipes
from emnist_dali.config import Config
from emnist_dali.runs.checkpoint import load_state
from emnist_dali.runs.folder import RunFolder
from emnist_dali.training import resume
from emnist_dali.training.session import Session, train
from emnist_dali.training.trainer import TIMING

# Tests do not depend on what the recipe trains best, nor on whether this CPU multiplies bf16.
TINY = {"model": "test_efficientnet", "optimizer": "adamw", "lr": 0.004, "amp": "off", "image_size": 32}


def flags(**options: Any) -> list[Any]:
    """The same for the command line."""
    return [word for name, value in {**TINY, **options}.items() for word in (f"--{name.replace('_', '-')}", value)]


def small(data_dir: Path, out: Path | str | None, **options: Any) -> Config:
    given = {"source": "glyphs", "data_dir": str(data_dir), "batch_size": 64, "epochs": 2, "device": "cpu"}
    return recipes.cpu("small").override({**TINY, **given, "out": str(out), **options})


def quick(data_dir: Path, out: Path | str | None, **options: Any) -> Config:
    """Learns little, in a quarter of the time."""
    return small(data_dir, out, **{"image_size": 16, **options})


def lines(run: RunFolder) -> list[dict]:
    return run.entries()


def go_on(path: Path, force: bool = False, **options: Any) -> RunFolder:
    """As `emnist-dali train --resume PATH` does."""
    return train(*resume.load(resume.find(str(path), None), None, options), force)


def signalled(monkeypatch: pytest.MonkeyPatch, name: str, when: Callable[[Session], bool]) -> None:
    """SIGTERM for this process at the first call of the Session's method `name` in which `when` holds."""
    real, sent = getattr(Session, name), []

    def method(session: Session, *arguments: Any) -> Any:
        if not sent and when(session):
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(session, *arguments)

    monkeypatch.setattr(Session, name, method)


def stopped(monkeypatch: pytest.MonkeyPatch, config: Config, name: str, when: Callable[[Session], bool]) -> Path:
    """The folder of a run that SIGTERM ended."""
    with monkeypatch.context() as patch:
        signalled(patch, name, when)
        with pytest.raises(SystemExit) as end:
            train(config)
    assert end.value.code == 128 + signal.SIGTERM
    return Path(config.run.out)


def at_step(step: int) -> tuple[str, Callable[[Session], bool]]:
    return "_after_step", lambda session: session.trainer.step == step


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def untimed(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name not in TIMING} for record in records]


def assert_same(path: Path, other: Path) -> None:
    """Both runs have the same weights to the byte, the same metrics, and the same state to go on from."""
    one, two = RunFolder(path), RunFolder(other)
    assert one.best.read_bytes() == two.best.read_bytes()
    assert untimed(lines(one)) == untimed(lines(two))
    states = [load_state(run.last) for run in (one, two)]
    for name in ("model", "ema", "optimizer", "scaler", "ranks", "epoch", "micro", "step", "best"):
        assert equal(*(state[name] for state in states)), name
    assert untimed(states[0]["log"]) == untimed(states[1]["log"])


def kept(path: Path) -> dict[str, bytes]:
    """What a run must not lose: its checkpoints and metrics."""
    files = [file for file in path.rglob("*") if file.suffix in (".pt", ".safetensors", ".jsonl")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.stat().st_size}
