"""Atomic writes that never replace somebody else's file, bounded JSON, and text that is safe on a terminal."""

import hashlib
import json
import mmap
import os
import re
import secrets
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError

# Bytes. A manifest of 256 classes with the longest names has 0.2 MB; parsed, JSON takes up to 30 times its file size.
MAX_JSON = 16 * 2**20
MAX_NAME = 4096
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line and paragraph separators
_BIDI_CONTROLS = range(0x202A, 0x202F), range(0x2066, 0x206A)  # change the direction of a line
# Every file that this project writes to a path that a user named contains this, and only such a file is replaced.
MARK = "emnist-dali:generated"
# In the style of pages older than the mark.
_OLD_MARK = "color-scheme: light dark; --line: #8884"
# Name of a file while it is being written; a killed process leaves it behind.
_TEMPORARY = re.compile(r"\..{1,80}\.[0-9a-f]{16}\.emnist-dali-tmp", re.DOTALL)


def sha256(path: Path) -> str:
    """Hex digest of a file, read 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises ValueError for anything else."""
    if not path.is_file():  # reading a pipe or a device may never end
        raise ValueError("it is not a regular file")
    if path.stat().st_size > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return path.read_bytes()


def is_uncompressed_zip(path: Path) -> bool:
    """False for a file that is not a zip, which torch.load would read as a legacy pickle.

    Raises ValueError for a zip with compressed members: torch.save writes none, and a small one can fill the memory.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
        with zipfile.ZipFile(file) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("its members are compressed")
    return True


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that becomes `path` when the block succeeds: readers see the old file or the new one.

    It is written under a unique temporary name, synced and renamed. Raises OSError.
    """
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.emnist-dali-tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def is_temporary(name: str) -> bool:
    """Whether `name` is a temporary name of `atomic_write`."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path) -> None:
    """Removes temporary files that killed processes left in `folder`; the caller holds the folder's lock."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_temporary(path.name):
                path.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Writes or replaces `path`, completely or not at all; raises UserError if that fails.

    For file names of this project in folders that it owns; for paths that a user named there is `write_output`.
    """
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); free up space there or choose another folder."
        ) from error


def check_output(path: Path) -> None:
    """Raises UserError if `path` exists and was not written by this project; to be called before any work is done."""
    try:
        if not os.path.lexists(path) or (path.is_file() and _is_marked(path)):
            return
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); choose another file name.") from error
    raise UserError(
        f"{path} already exists and was not written by emnist-dali; choose another file name, or remove it."
    )


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return True  # an empty file has nothing to lose
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(mark.encode()) >= 0 for mark in (MARK, _OLD_MARK))


def write_output(path: Path, content: bytes) -> None:
    """Writes a file that a user named, creating its folder; `content` contains MARK. Raises UserError."""
    check_output(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} could not be created ({error.strerror}); choose another folder.") from error
    write_atomic(path, content)


def write_json(path: Path, content: Any) -> None:
    """Writes `encode_json(content)` atomically."""
    write_atomic(path, encode_json(content))


def encode_json(content: Any) -> bytes:
    """JSON in which an object has the sha256 of its other members, which `read_json` checks."""
    if isinstance(content, dict):
        content = {**content, "sha256": _digest(content)}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, advice: str = "choose another file", allow_edits: bool = False) -> Any:
    """What `write_json` wrote, without its sha256; files without one, from older versions, are accepted.

    Raises UserError, which ends in `advice`, if the file is missing, longer than MAX_JSON bytes, nested too deeply or
    not JSON, or if its sha256 does not match, unless `allow_edits`.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; {advice}.")
    try:
        content = parse_json(read_bytes(path, MAX_JSON).decode())
        if isinstance(content, dict) and "sha256" in content:
            digest = content.pop("sha256")
            if not allow_edits and digest != _digest(content):
                raise ValueError("its sha256 does not match: it was damaged or changed after it was written")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read as JSON ({reason(error)}); {advice}.") from error
    return content


def parse_json(text: str) -> Any:
    """Raises ValueError, also for NaN and Infinity, which JSON does not have, and RecursionError for deep nesting."""
    return json.loads(text, parse_constant=_reject_constant)


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def reason(error: BaseException) -> str:
    """The message of another library's error, on one printable line of at most 200 characters, without secrets."""
    message = " ".join(masked(str(error)).split()) or type(error).__name__
    return (message if message.isprintable() else ascii(message))[:200]


def _is_control(character: str) -> bool:
    """Whether a terminal would act on the character instead of showing it."""
    bidi = any(ord(character) in controls for controls in _BIDI_CONTROLS)
    return bidi or unicodedata.category(character) in _UNPRINTABLE


def printable(text: str) -> str:
    """`text` with control characters, line breaks and lone surrogates escaped, so that a terminal only shows it."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_control(character) else character for character in text
    )


# The password in a URL, and secrets in its query.
_SECRETS = ((re.compile(r"(\w://[^\s/@:]*):(?:\S*|[^@/\n]*)@"), r"\1:***@"),
            (re.compile(r"(?i)((?:password|passwd|pwd|token|secret|api_?key)=)[^\s&;]+"), r"\1***"))  # fmt: skip


def masked(text: str) -> str:
    """`text` with passwords and other secrets of URLs replaced by `***`."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def is_plain(name: Any) -> bool:
    """Whether it is a string of at most MAX_NAME characters, all of them encodable in UTF-8 and printable."""
    return (
        isinstance(name, str)
        and len(name) <= MAX_NAME
        and (name.isprintable() or not any(map(_is_control, name)))  # isprintable is fast and settles most names
    )


def is_folder_name(name: Any) -> bool:
    """Whether it can name a folder inside another: plain, at most 200 bytes, not hidden, no path separators."""
    return (
        is_plain(name)
        and 0 < len(name.encode()) <= 200
        and not name.startswith(".")
        and not any(separator in name for separator in "/\\")
        and name == name.strip()
    )
