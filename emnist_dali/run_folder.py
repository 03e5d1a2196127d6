"""runs/<name>/: config.json, env.json, metrics.jsonl, checkpoints/."""

import json
import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .config import Config, from_dict
from .errors import UserError
from .files import read_json, write_json
from .loader import available_cpus

PACKAGES = ("emnist-dali", "torch", "timm", "nvidia-dali-cuda120", "lion-pytorch", "torchmetrics", "numba", "numpy")


class RunFolder:
    """The files of one run. Raises UserError where a folder to create already holds a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "checkpoints" / "best.safetensors"
        self.last = path / "checkpoints" / "last.pt"

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """`config.run.out`, or runs/<split>-<recipe>-<time>; writes config.json and env.json."""
        name = f"{config.data.split}-{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
        path = Path(config.run.out or Path("runs") / name)
        if (path / "config.json").exists():
            raise UserError(f"{path} already holds a run; name another --out or remove it.")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} could not be made ({error.strerror}); name another --out.") from error
        write_json(path / "config.json", config.to_dict())
        write_json(path / "env.json", environment())
        return cls(path)

    def config(self) -> Config:
        return from_dict(read_json(self.path / "config.json"))

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


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
