"""The JSON file that a benchmark writes: its result file."""

import json
import subprocess
from pathlib import Path
from typing import Any

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_atomic

# What older result files call a benchmark.
_RENAMED = {"scale": "growth", "scaling": "ddp_scaling", "variants": "pipeline_settings"}


def check_result_file(path: Path | None, benchmark: str) -> None:
    """Raises UserError if `path` exists and is not a result file of `benchmark`: only such a file is replaced."""
    if not path or not path.exists():
        return
    content = read_json(path)
    name = content.get("benchmark") if isinstance(content, dict) else None
    if _RENAMED.get(name, name) != benchmark:
        raise UserError(f"{path} exists and is not a result file of {benchmark}; choose another --json.")


def write_result_file(path: Path, document: dict[str, Any]) -> None:
    check_result_file(path, document["benchmark"])
    write_atomic(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def commit() -> str | None:
    """The commit that runs, with a plus if files differ from it; None outside of a repository."""
    try:
        described = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        folder = Path(__file__).parent
        return subprocess.run(described, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
