"""Files that are whole or absent, and never in the place of somebody else's."""

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

# A manifest of 256 classes with the longest names has 0.2 MB; Python's objects take up to 30 times a file's size.
MAX_JSON = 16 * 2**20
MAX_NAME = 4096
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line and paragraph separators
_TURNING = range(0x202A, 0x202F), range(0x2066, 0x206A)  # what turns the direction of a line
# What every file holds that this project writes where a user asked for it: such a file may be replaced.
MARK = "emnist-dali:generated"
# Pages from before there was a mark have this in their style.
_OLD_MARK = "color-scheme: light dark; --line: #8884"
# The name of a file that is being written; a kill leaves it behind.
_TEMPORARY = re.compile(r"\..{1,80}\.[0-9a-f]{16}\.emnist-dali-tmp", re.DOTALL)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes; ValueError for anything else."""
    if not path.is_file():  # a pipe or a device would be read for ever
        raise ValueError("it is no file")
    if path.stat().st_size > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return path.read_bytes()


def is_uncompressed_zip(path: Path) -> bool:
    """False for what torch.load takes for an old pickle.

    ValueError for a zip with compressed members: torch.save makes none, and a small one can fill the memory.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
        with zipfile.ZipFile(file) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("it is compressed")
    return True


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets the name `path` once the block has ended well: a reader sees the old file or the new one.

    It is made under a name of its own that nothing else has, synced and renamed. Raises OSError.
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
    """Whether `replacing` gives such names."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path) -> None:
    """Removes what killed processes left in `folder`, which this one holds the lock of."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_temporary(path.name):
                path.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """`content` as `path`, whole or not at all, in the place of what was there; UserError where that fails.

    For files whose names are this project's own, in folders that it has claimed; what a user names is for
    `write_output`.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); free space there or name another folder."
        ) from error


def check_output(path: Path) -> None:
    """UserError where `path` is there and was not written by this project, before any work is done for it."""
    try:
        if not os.path.lexists(path) or (path.is_file() and _is_marked(path)):
            return
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name another file.") from error
    raise UserError(f"{path} is there and was not written by emnist-dali; name another file, or remove it.")


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return True  # there is nothing to lose
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(mark.encode()) >= 0 for mark in (MARK, _OLD_MARK))


def write_output(path: Path, content: bytes) -> None:
    """A file that a user named, with its folder; `content` holds MARK. Raises UserError as `check_output` does."""
    check_output(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} could not be made ({error.strerror}); name another file.") from error
    write_whole(path, content)


def write_json(path: Path, content: Any) -> None:
    """An object gets the sha256 of the rest of it as its last member, which `read_json` checks."""
    if isinstance(content, dict):
        content = {**content, "sha256": _digest(content)}
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, mend: str = "name another one", edited: bool = False) -> Any:
    """What `write_json` wrote, without its sha256; files from before there was one are taken as they are.

    Raises UserError where the file is missing, longer than MAX_JSON bytes, nested too deeply, or not JSON, and where
    its sha256 is not that of the rest, unless it may have been `edited`; `mend` is what it tells people to do.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; {mend}.")
    try:
        content = parse_json(read_bytes(path, MAX_JSON).decode())
        if isinstance(content, dict) and "sha256" in content:
            given = content.pop("sha256")
            if not edited and given != _digest(content):
                raise ValueError("it was damaged or changed after it was written: its sha256 is of something else")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read as JSON ({reason(error)}); {mend}.") from error
    return content


def parse_json(text: str) -> Any:
    """ValueError also for NaN and Infinity, which are no JSON; RecursionError where it is nested too deeply."""
    return json.loads(text, parse_constant=_no_constant)


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def reason(error: BaseException) -> str:
    """What the error of another library says, on one line and in at most 200 characters."""
    said = " ".join(masked(str(error)).split()) or type(error).__name__
    return (said if said.isprintable() else ascii(said))[:200]


def _is_obeyed(character: str) -> bool:
    """Whether a terminal does something else with it than to show it."""
    turns = any(ord(character) in turning for turning in _TURNING)
    return turns or unicodedata.category(character) in _UNPRINTABLE


def printable(text: str) -> str:
    """`text` with control characters, line breaks and lone surrogates as escapes, which no terminal obeys."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_obeyed(character) else character for character in text
    )


# Password of a user in an address; secrets in its query.
_SECRETS = ((re.compile(r"(\w://[^\s/@:]*):(?:\S*|[^@/\n]*)@"), r"\1:***@"),
            (re.compile(r"(?i)((?:password|passwd|pwd|token|secret|api_?key)=)[^\s&;]+"), r"\1***"))  # fmt: skip


def masked(text: str) -> str:
    """`text` without the passwords of addresses in it."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def is_plain(name: Any) -> bool:
    """Whether it is text that UTF-8 holds and a line shows, of at most MAX_NAME characters."""
    return (
        isinstance(name, str)
        and len(name) <= MAX_NAME
        and (name.isprintable() or not any(map(_is_obeyed, name)))  # the former at once, for most names
    )


def is_component(name: Any) -> bool:
    """Whether it can name one folder in another: plain, of at most 200 bytes, not hidden, and no way elsewhere."""
    return (
        is_plain(name)
        and 0 < len(name.encode()) <= 200
        and not name.startswith(".")
        and not any(separator in name for separator in "/\\")
        and name == name.strip()
    )
