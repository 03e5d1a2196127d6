"""runs/<name>/: config.json, env.json, metrics.jsonl, checkpoints/."""

import json
import math
import os
import platform
import sys
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from . import ranks
from .checkpoint import load_weights, save_state
from .config import Config, from_dict
from .errors import UserError
from .files import read_json, reason, write_json, write_whole
from .loader import available_cpus
from .metrics import Predictions

PACKAGES = ("emnist-dali", "torch", "timm", "nvidia-dali-cuda120", "lion-pytorch", "torchmetrics", "numba", "numpy")
CONFIG, METRICS, LAST = "config.json", "metrics.jsonl", "checkpoints/last.pt"


def is_run(path: Path) -> bool:
    """Whether a run was started in `path`; it has a checkpoint then."""
    return (path / CONFIG).exists()


class RunFolder:
    """The files of one run; only rank 0 writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "checkpoints" / "best.safetensors"
        self.last = path / LAST
        self.lines: list[dict[str, Any]] = []

    @classmethod
    def make(cls, config: Config) -> "RunFolder":
        """A folder at `config.run.out`, or at runs/<split>-<recipe>-<time>; UserError where a run is."""
        name = f"{config.data.split}-{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
        path = Path(ranks.from_main(lambda: config.run.out or str(Path("runs") / name)))
        run = cls(path)
        if ranks.main():
            if is_run(path):
                raise UserError(
                    f"{path} already holds a run; go on with it by --resume {path}, name another --out or remove it."
                )
            try:
                run.last.parent.mkdir(parents=True, exist_ok=True)
                (path / METRICS).unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{path} could not be made ({error.strerror}); name another --out.") from error
        return run

    def begin(self, config: Config, state: dict[str, Any]) -> None:
        """From here on the folder holds a run that can be gone on with."""
        self.save(state)
        if ranks.main():
            write_json(self.path / "env.json", environment())
            write_json(self.path / CONFIG, config.to_dict())

    def go_on(self, config: Config, state: dict[str, Any]) -> None:
        """Back to where a checkpoint was: what came after it is taken out of metrics.jsonl."""
        self.lines = [line for line in state["log"] if line["kind"] in ("compile", "epoch")]
        if not ranks.main():
            return
        write_whole(self.path / METRICS, "".join(map(_line, self.lines)).encode())
        write_json(self.path / CONFIG, config.to_dict())
        env = read_json(self.path / "env.json")
        resumed = {"step": state["step"], "test_was_read": len(self.lines) < len(state["log"]), **environment()}
        write_json(self.path / "env.json", {**env, "resumed": [*env.get("resumed", []), resumed]})

    def save_predictions(self, part: str, predictions: Predictions) -> None:
        """`predictions-<part>.safetensors`, so that nobody has to read the test images again."""
        if ranks.main():
            tensors = {
                "probabilities": predictions.probabilities.half(),
                "predicted": predictions.probabilities.argmax(-1).byte(),
                "labels": predictions.labels.byte(),
            }
            write_whole(self.predictions(part), save(tensors))

    def predictions(self, part: str) -> Path:
        return self.path / f"predictions-{part}.safetensors"

    def config(self) -> Config:
        path = self.path / CONFIG
        return from_dict(read_json(path), str(path))

    def logged(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, none where it is missing; UserError where it holds something else."""
        path = self.path / METRICS
        try:
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
            if not all(isinstance(line, dict) and "kind" in line for line in lines):
                raise ValueError("its lines are no records")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} could not be read ({reason(error)}); name another run.") from error
        return lines

    def log(self, *records: dict[str, Any]) -> None:
        """Appends a line each to metrics.jsonl."""
        self.lines += records
        if ranks.main():
            path = self.path / METRICS
            size = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(map(_line, records)))
            except OSError as error:
                with suppress(OSError):
                    os.truncate(path, size)  # half a line is none
                raise UserError(f"{path} could not be written ({error.strerror}); free space there.") from error

    def best_step(self) -> float:
        """The step of the best weights, infinite without any."""
        return load_weights(self.best)[1].get("step", math.inf) if self.best.exists() else math.inf

    def save(self, state: dict[str, Any], keep: int = 1) -> None:
        """Replaces the last checkpoint; the `keep` newest stay under their steps' names where those are several."""
        if not ranks.main():
            return
        save_state(self.last, {**state, "log": self.lines})
        if keep > 1:
            kept = self.last.with_name(f"step-{state['step']:08d}.pt")
            try:
                kept.unlink(missing_ok=True)
                os.link(self.last, kept)
                steps = sorted(self.last.parent.glob("step-*.pt"))
                here = steps.index(kept) + 1
                # Later steps are of a course that was given up.
                for other in steps[here:] + steps[: max(here - keep, 0)]:
                    other.unlink()
            except OSError as error:
                raise UserError(f"{kept} could not be linked ({error.strerror}); take --keep 1.") from error


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def environment() -> dict[str, Any]:
    """The machine, the versions and the command of this process."""
    return {
        "command": " ".join(sys.argv),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": available_cpus(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
