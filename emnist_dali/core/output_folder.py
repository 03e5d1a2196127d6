"""Folders at a path that a user named: written whole, and replaced only if nothing but ours is in them."""

import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import UserError
from .files import MARK, printable, read_json, reason, remove_temporaries, sha256, write_json
from .locks import LOCK, Lock

# Lists the folder's other files, with their sha256.
LISTING = "emnist-dali.json"


def check_output_folder(folder: Path) -> None:
    """Raises UserError if `folder` exists and holds anything that `write_output_folder` did not write."""
    _check(folder, folder)


def write_output_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder of `files`, by their paths in it, and of their listing; replaces one that it wrote before.

    It is whole or not there, and the later one of two at once stays. Links to it stay in place. Raises UserError.
    """
    target = Path(os.path.realpath(folder))  # Path.resolve raises for a loop of links in Python 3.10
    if Path.cwd().is_relative_to(target):
        raise UserError(f"{folder} is the working directory, or holds it; choose another folder.")
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.emnist-dali-partial")
    names = {*files, LISTING}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Lock(target.with_name(f".{target.name}{LOCK}"), folder, wait=True):
            check_output_folder(folder)  # here, where no other process replaces it
            for killed in target.parent.glob(f".{glob.escape(target.name)}.*.emnist-dali-partial"):
                _remove(killed, names)
            try:
                new.mkdir()
                if target.exists():
                    shutil.copymode(target, new)
                for name, content in files.items():
                    _write(new / name, content)
                digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
                write_json(new / LISTING, {"generator": MARK, "files": digests})
                _replace(target, new, folder)
            finally:
                _remove(new, names)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}); free up space there or choose another folder."
        ) from error


def _check(folder: Path, shown: Path) -> None:
    try:
        if not os.path.lexists(folder):
            return
        if not folder.is_dir():
            raise UserError(f"{shown} exists and is not a folder; choose another one, or remove it.")
        foreign = next(_foreign_files(folder), None)
    except (OSError, RuntimeError) as error:  # Python 3.10 raises RuntimeError for a loop of links
        raise UserError(f"{shown} cannot be read ({reason(error)}); choose another folder.") from error
    if foreign:
        raise UserError(
            f"{shown} holds {printable(foreign)}, which is not as emnist-dali wrote it; choose another folder, or "
            "move it elsewhere."
        )


def _foreign_files(folder: Path) -> Iterator[str]:
    """Paths in `folder` of what its listing does not have, or has with another sha256, and of links."""
    listed = _listed(folder)
    own = {parent.as_posix() for name in listed for parent in Path(name).parents}
    yield from (name for name in _folders(folder) if name not in own)
    for name in _names(folder):
        path = folder / name
        is_ours = name in listed and not path.is_symlink() and path.is_file()
        if not is_ours or (name != LISTING and listed[name] != sha256(path)):
            yield name


def _folders(folder: Path) -> Iterator[str]:
    """Paths of the folders in `folder`."""
    for place, folders, _ in os.walk(folder, onerror=_refuse):
        yield from (Path(place, name).relative_to(folder).as_posix() for name in folders)


def _refuse(error: OSError) -> None:
    raise error


def _names(folder: Path) -> Iterator[str]:
    """Paths in `folder` of all but folders."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in (*links, *files):
            yield Path(place, name).relative_to(folder).as_posix()


def _listed(folder: Path) -> dict[str, str]:
    """sha256 by name, with the listing's own name; empty if there is no listing, or it is not as it was written."""
    with suppress(UserError, TypeError, LookupError, ValueError):
        return {LISTING: "", **read_json(folder / LISTING)["files"]}
    return {}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, new: Path, shown: Path) -> None:
    """Puts `new` in the place of `folder`, which is checked again: for the moment of two renames there is neither."""
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_suffix(".old.emnist-dali-partial")
    folder.rename(old)
    try:
        _check(old, shown)
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    _remove(old, _listed(old).keys() & set(_names(old)))


def _remove(folder: Path, names: Collection[str]) -> None:
    """Removes the files of these names, and then the folders that are empty."""
    if folder.is_symlink():
        return
    with suppress(OSError):
        remove_temporaries(folder)
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for path in {(folder / name).parent for name in names} - {folder}:
            if path.is_dir():
                path.rmdir()
        folder.rmdir()
