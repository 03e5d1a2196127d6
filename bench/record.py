"""The file that a benchmark writes."""

import json
from pathlib import Path
from typing import Any

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_whole


def check_record(path: Path | None, benchmark: str) -> None:
    """UserError where `path` is there and holds no record of the same benchmark, which alone may be replaced."""
    if not path or not path.exists():
        return
    before = read_json(path)
    if not isinstance(before, dict) or before.get("benchmark") != benchmark:
        raise UserError(f"{path} is there and is no record of the benchmark {benchmark}; name another --json.")


def write_record(path: Path, document: dict[str, Any]) -> None:
    check_record(path, document["benchmark"])
    write_whole(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
