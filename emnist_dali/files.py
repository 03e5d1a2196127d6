"""Files that are whole or absent."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UserError


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Writes to a temporary file beside `path`, syncs and renames: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"{path} could not be written ({error.strerror}); free space there or name another folder."
        ) from error


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises UserError where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} could not be read as JSON ({error}).") from error
