"""Folders at a path that a user named: written whole, and replaced only if nothing else than ours is in them."""

import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import UserError
from .files import MARK, printable, read_json, reason, sha256, write_json
from .locks import LOCK, Lock

# Lists the folder's other files with their sha256.
LISTING = "emnist-dali.json"


def check_output_folder(folder: Path) -> None:
    """Raises UserError if `folder` exists and holds anything that `write_output_folder` did not write."""
    try:
        if not os.path.lexists(folder):
            return
        if not folder.is_dir():
            raise UserError(f"{folder} exists and is not a folder; choose another one, or remove it.")
        foreign = next(_foreign_files(folder), None)
    except (OSError, RuntimeError) as error:  # Python 3.10 raises RuntimeError for a loop of links
        raise UserError(f"{folder} cannot be read ({reason(error)}); choose another folder.") from error
    if foreign:
        raise UserError(
            f"{folder} holds {printable(foreign)}, which is not as emnist-dali wrote it; choose another folder, or "
            "move it elsewhere."
        )


def _foreign_files(folder: Path) -> Iterator[str]:
    """Paths in `folder` of files that its listing does not have, or has with another sha256, and of links."""
    listed: dict[str, str] = {}
    if (folder / LISTING).is_file():
        with suppress(UserError, TypeError, LookupError, ValueError):
            listed = dict(read_json(folder / LISTING)["files"])
            listed[LISTING] = sha256(folder / LISTING)
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name) for name in (*links, *names)):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file() or name not in listed or listed[name] != sha256(path):
                yield name


def write_output_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder of `files`, by their paths in it, and their listing; replaces one that it wrote before.

    It is whole or not there, and of two at once the later one stays. Links to it stay in place. Raises UserError.
    """
    check_output_folder(folder)
    target = folder.resolve()
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.emnist-dali-partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Lock(target.with_name(f".{target.name}{LOCK}"), folder, wait=True):
            for killed in target.parent.glob(f".{glob.escape(target.name)}.*.emnist-dali-partial"):
                shutil.rmtree(killed, ignore_errors=True)
            try:
                for name, content in files.items():
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    _write(new / name, content)
                digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
                write_json(new / LISTING, {"generator": MARK, "files": digests})
                _replace(target, new)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}); free up space there or choose another folder."
        ) from error


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, new: Path) -> None:
    """Puts `new` in the place of `folder`, which is checked again: for the moment of two renames there is neither."""
    old = new.with_name(f"{new.name}.old.emnist-dali-partial")
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        check_output_folder(old)
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
