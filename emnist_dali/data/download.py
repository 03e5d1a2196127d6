"""Downloads a split's four files from NIST, 33 MB for Balanced instead of the archive's 562 MB, or those of a set.

The members of the remote zip are fetched by HTTP range. Every transfer goes to a part file, which later attempts and
later runs resume. A file gets its name only after its sha256 has been verified, so whatever went wrong before (a part
mixed from two versions of the archive, a broken proxy) ends in a fresh download or an error, never in bad data.
"""

import contextlib
import hashlib
import itertools
import os
import re
import struct
import time
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import requests
import urllib3
from remotezip import RangeNotSupported, RemoteZip, RemoteZipError

from ..core.errors import UserError
from ..core.files import atomic_write, reason, sha256
from ..core.locks import LOCK, Lock
from ..core.progress import progress, say
from .emnist import ARCHIVE_FOLDER, ARCHIVE_MD5, ARCHIVE_URL, OFFICIAL_FILES, file_name
from .named_sets import SETS, NamedFile

ARCHIVE_NAME = "gzip.zip"
ALTERNATIVES = "--source PATH (a folder with the idx files, or gzip.zip) or --source glyphs (drawn, not EMNIST)"
TIMEOUT = (10, 60)  # seconds: to connect, and between two packets
RETRY_DELAYS = (1, 2, 4, 8, 16)  # seconds before each retry of a transfer
CHUNK = 2**20
PACKET = 2**14  # bytes read from the network at a time; an interrupted transfer loses less than one packet

T = TypeVar("T")


def fetch(split: str, folder: Path, url: str = ARCHIVE_URL, delays: Sequence[float] = RETRY_DELAYS) -> list[Path]:
    """Downloads the split's official files into `folder`: train images, train labels, test images, test labels.

    Existing files are kept if their sha256 is right and renamed otherwise. If the server or a proxy refuses ranges,
    the whole archive is downloaded into `folder` and kept for the other splits. `delays` are the seconds before each
    retry of an interrupted transfer. Raises UserError if NIST cannot be reached or sends something else, or if
    `folder` cannot be written.
    """
    paths = split_paths(split, folder)
    archive = folder / ARCHIVE_NAME
    try:
        if all(map(_is_official, paths)):
            return paths
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder / LOCK, folder, wait=True):  # part files and the archive are shared
            missing = [path for path in paths if not _is_official(path)]
            for path in missing:
                _set_aside(path)
            if not (archive.is_file() and md5(archive) == ARCHIVE_MD5):
                with requests.Session() as session:
                    # Ranges count the archive's own bytes, so nothing may compress them on the way.
                    session.headers["Accept-Encoding"] = "identity"
                    with contextlib.suppress(RangeNotSupported):
                        _fetch_members(session, url, missing, delays)
                        return paths
                    _set_aside(archive)
                    file = NamedFile(ARCHIVE_NAME, None, ARCHIVE_MD5)
                    _fetch_file(session, url, archive, file, "the EMNIST archive", delays)
            _extract(archive, missing)
    except (requests.RequestException, urllib3.exceptions.HTTPError, RemoteZipError) as error:
        raise UserError(
            f"NIST could not be reached at {url} ({root_cause(error)}); check the connection and run again, which "
            f"resumes the download, or use {ALTERNATIVES}."
        ) from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{url} is not the EMNIST archive ({error.args[0]}); use {ALTERNATIVES}.") from error
    except OSError as error:
        raise UserError(
            f"The official files cannot be stored in {folder} ({error.strerror or error}); free up space there or "
            "choose another folder."
        ) from error
    return paths


def fetch_set(name: str, folder: Path, delays: Sequence[float] = RETRY_DELAYS) -> list[Path]:
    """Downloads the files of one of `named_sets.SETS` into `folder`, unless they are there, and returns their paths.

    `delays` are the seconds before each retry. Raises UserError as `fetch`.
    """
    published = SETS[name]
    paths = [folder / file.name for file in published.files]
    missing = [file for file in published.files if not _matches(folder / file.name, file)]
    if not missing:
        return paths
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder / LOCK, folder, wait=True), requests.Session() as session:
            session.headers["Accept-Encoding"] = "identity"
            for file in missing:
                path, url = folder / file.name, f"{published.url}{file.name}{published.query}"
                if not _matches(path, file):  # another process may have fetched it
                    _set_aside(path)
                    _fetch_file(session, url, path, file, f"the file of {published.title}", delays)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise UserError(
            f"{published.title} could not be reached at {published.url} ({root_cause(error)}); check the connection "
            "and run again, which resumes the download, or use --source PATH (its files)."
        ) from error
    except OSError as error:
        raise UserError(
            f"The files of {published.title} cannot be stored in {folder} ({error.strerror or error}); free up space "
            "there or choose another folder."
        ) from error
    return paths


def _matches(path: Path, file: NamedFile) -> bool:
    return path.is_file() and file.digest == (md5(path) if len(file.digest) == 32 else sha256(path))


def split_paths(split: str, folder: Path) -> list[Path]:
    """Paths of train images, train labels, test images and test labels under their official names."""
    return [folder / file_name(split, part, kind) for part in ("train", "test") for kind in ("images", "labels")]


def md5(path: Path | zipfile.Path) -> str:
    """Hex digest of a file."""
    state = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _is_official(path: Path) -> bool:
    return path.is_file() and sha256(path) == OFFICIAL_FILES[path.name].sha256


def _set_aside(path: Path) -> None:
    """Renames a file that is not the official one and may be the user's own."""
    if not os.path.lexists(path):
        return
    for i in itertools.count(1):
        other = path.with_name(f"{path.name}.not-official-{i}")
        if not os.path.lexists(other):
            path.rename(other)
            say(f"{path} is not the official file and was renamed to {other.name}.")
            return


def _part_path(path: Path) -> Path:
    """The file that holds an unfinished download of `path`."""
    return path.with_name(f".{path.name}.emnist-dali-part")


def _fetch_members(session: requests.Session, url: str, paths: list[Path], delays: Sequence[float]) -> None:
    with RemoteZip(url, session=session, timeout=TIMEOUT) as archive:
        members = [archive.getinfo(f"{ARCHIVE_FOLDER}/{path.name}") for path in paths]
        ends = sorted([*(member.header_offset for member in archive.infolist()), archive.start_dir])
        total = archive.size()
    for path, member in zip(paths, members, strict=True):
        part = _part_path(path)
        # From its local header, whose length only the header itself tells, up to whatever follows.
        first = member.header_offset
        size = ends[bisect_right(ends, first)] - first
        for _ in range(2):
            _fetch_bytes(session, url, part, first, size, total, delays)
            written = _write_official(_member_content(part, member), path)
            part.unlink()
            if written:
                break
        else:
            raise UserError(
                f"{url} sends {path.name} with a sha256 that is not the official one; use {ALTERNATIVES}."
            )


def _member_content(part: Path, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a zip member whose local header and data are in `part`; stops early if they are damaged."""
    with contextlib.suppress(struct.error, zlib.error), part.open("rb") as stream:
        name, extra = struct.unpack("<26xHH", stream.read(30))
        stream.seek(name + extra, os.SEEK_CUR)
        if member.compress_type == zipfile.ZIP_STORED:
            for start in range(0, member.compress_size, CHUNK):
                yield stream.read(min(CHUNK, member.compress_size - start))
            return
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        while not inflater.eof and (data := inflater.unconsumed_tail or stream.read(CHUNK)):
            yield inflater.decompress(data, CHUNK)
        yield inflater.flush()


def _fetch_file(
    session: requests.Session, url: str, path: Path, file: NamedFile, title: str, delays: Sequence[float]
) -> None:
    """Downloads `file`, called `title` in messages; begins anew if its hash is wrong."""
    part = _part_path(path)
    total = file.bytes or _retried(partial(_size, session, url), delays)
    for _ in range(2):
        if total:
            _fetch_bytes(session, url, part, 0, total, total, delays)
        else:
            _retried(partial(_fetch_whole, session, url, part), delays)
        if _matches(part, file):
            part.replace(path)
            return
        part.unlink(missing_ok=True)
    raise UserError(
        f"{url} sends something other than {title} (its hash differs); download it elsewhere and use --source PATH."
    )


def _retried(transfer: Callable[[], T], delays: Sequence[float]) -> T:
    for delay in delays:
        try:
            return transfer()
        except requests.RequestException as error:
            if error.response is not None and error.response.status_code < 500:  # the same again
                raise
            say(f"The transfer failed ({reason(error)}); it is tried again in {delay:g} s.")
            time.sleep(delay)
    return transfer()


def _size(session: requests.Session, url: str) -> int | None:
    """None if the server does not tell: some refuse HEAD and answer GET."""
    response = session.head(url, allow_redirects=True, timeout=TIMEOUT)
    if 400 <= response.status_code < 500:
        return None
    response.raise_for_status()
    return int(response.headers.get("Content-Length", 0)) or None


def _fetch_whole(session: requests.Session, url: str, part: Path) -> None:
    """Downloads a file whose size the server does not tell, so that no transfer can be resumed."""
    with session.get(url, stream=True, timeout=TIMEOUT) as response, part.open("wb") as stream:
        response.raise_for_status()
        for chunk in response.iter_content(PACKET):
            stream.write(chunk)


def _extract(archive: Path, paths: list[Path]) -> None:
    with zipfile.ZipFile(archive) as members:
        for path in paths:
            with members.open(f"{ARCHIVE_FOLDER}/{path.name}") as stream:
                if not _write_official(iter(partial(stream.read, CHUNK), b""), path):
                    raise UserError(
                        f"{archive} holds {path.name} with a wrong sha256; delete the archive and run again."
                    )


def _write_official(content: Iterable[bytes], path: Path) -> bool:
    """Writes `content` to `path` if it is the official file of that name; whether it was."""
    official = OFFICIAL_FILES[path.name]
    digest, size = hashlib.sha256(), 0
    with contextlib.suppress(_NotOfficialError), atomic_write(path) as stream:
        for chunk in content:
            size += len(chunk)
            if size > official.bytes:
                break
            digest.update(chunk)
            stream.write(chunk)
        if size != official.bytes or digest.hexdigest() != official.sha256:
            raise _NotOfficialError
        return True
    return False


class _NotOfficialError(Exception):
    pass


def _fetch_bytes(
    session: requests.Session, url: str, part: Path, first: int, size: int, total: int, delays: Sequence[float]
) -> None:
    """Extends `part` to `size` bytes, from `first` on, of a remote file of `total` bytes; the caller checks the hash.

    A server that ignores the range and sends the whole file restarts the transfer if all of it is wanted; otherwise
    raises RangeNotSupported. Raises requests.RequestException after the last of `delays`.
    """
    remaining = iter(delays)
    with progress(description=part.name.split(".")[1], total=size, unit="B") as bar:
        while (have := part.stat().st_size if part.exists() else 0) < size:
            bar.update(have - bar.n)
            headers = {"Range": f"bytes={first + have}-{first + size - 1}"}
            try:
                with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                    response.raise_for_status()
                    whole = response.status_code == 200
                    if whole and size < total:
                        raise RangeNotSupported("The server does not support range requests")
                    if not whole:
                        _check_range(response, first + have, total)
                    with part.open("wb" if whole else "ab") as stream:
                        for chunk in response.iter_content(PACKET):
                            bar.update(stream.write(chunk))
                if part.stat().st_size < size:
                    raise requests.ConnectionError("the connection was cut")
            except requests.RequestException:
                delay = next(remaining, None)
                if delay is None:
                    raise
                time.sleep(delay)


def _check_range(response: requests.Response, first: int, total: int) -> None:
    sent = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", sent)
    if not match or (int(match[1]), int(match[2])) != (first, total):
        raise UserError(
            f"{response.url} sends the range {sent!r} instead of bytes from {first} on of {total}: the file has "
            "changed or a proxy is broken; run again, or download it elsewhere and use --source PATH."
        )


def root_cause(error: BaseException) -> str:
    """What started a chain of exceptions: "Connection refused" instead of three layers of pools and retries."""
    while error.__context__ is not None:
        error = error.__context__
    return str(getattr(error, "strerror", None) or error)
