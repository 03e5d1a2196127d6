"""Files that are whole or absent."""

import hashlib
import json
import os
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UserError

# A manifest of 256 classes with the longest names has 0.2 MB; Python's objects take up to 30 times a file's size.
MAX_JSON = 16 * 2**20
MAX_NAME = 4096
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line and paragraph separators


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_whole(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Writes to a temporary file beside `path`, syncs and renames: a reader sees the old file or the new one.

    With `shared` other processes may be writing the same; what a kill leaves is not overwritten then.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
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


def write_json(path: Path, content: Any, *, shared: bool = False) -> None:
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(), shared=shared)


def read_json(path: Path) -> Any:
    """Raises UserError where the file is missing, longer than MAX_JSON bytes, nested too deeply, or not JSON."""
    if not path.exists():
        raise UserError(f"{path} is missing.")
    try:
        if not path.is_file():  # reading from a pipe would wait for ever
            raise ValueError("it is no file")
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read as JSON ({reason(error)}).") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def reason(error: BaseException) -> str:
    """What the error of another library says, on one line and in at most 200 characters."""
    said = " ".join(str(error).split()) or type(error).__name__
    return (said if said.isprintable() else ascii(said))[:200]


def is_plain(name: Any) -> bool:
    """Whether it is text that UTF-8 holds and a line shows, of at most MAX_NAME characters."""
    return (
        isinstance(name, str)
        and len(name) <= MAX_NAME
        and not any(unicodedata.category(character) in _UNPRINTABLE for character in name)
    )
