"""Fetch one split's four official files from NIST: 33 MB for Balanced instead of the archive's 562 MB.

The members of the remote zip are fetched by HTTP range. Every transfer goes to a part file, which
later attempts and later runs continue. A file gets its name only after its sha256 has been found right, so whatever
went wrong before (a part mixed from two versions of the archive, two runs at once, a broken proxy) ends as a
fresh download or as an error, never as data.
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
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import requests
import urllib3
from remotezip import RangeNotSupported, RemoteZip, RemoteZipError

from ..core.errors import UserError
from ..core.files import replacing, sha256
from ..core.locks import LOCK, Lock
from ..core.progress import progress, say
from .emnist import ARCHIVE_FOLDER, ARCHIVE_MD5, ARCHIVE_URL, OFFICIAL_FILES, file_name

ARCHIVE_NAME = "gzip.zip"
WAYS_OUT = "--source PATH (a folder with the idx files, or gzip.zip) or --source glyphs (drawn, not EMNIST)"
TIMEOUT = (10, 60)  # seconds: to connect; between two packets
WAITS = (1, 2, 4, 8, 16)  # seconds before each further attempt at one transfer
CHUNK = 2**20
PACKET = 2**14  # bytes read at a time from the network; a cut loses what is short of one


def fetch(split: str, folder: Path, url: str = ARCHIVE_URL, waits: Sequence[float] = WAITS) -> list[Path]:
    """The split's train images, train labels, test images and test labels, as official files in `folder`.

    Files that are there with the right sha256 are kept, others of these names are set aside. Where the server or a
    proxy refuses ranges, the whole archive is downloaded into `folder` and kept for the other splits. `waits` are the
    seconds before each further attempt at a transfer that was cut. UserError if NIST cannot be reached or sends
    something else, or if `folder` cannot be written.
    """
    paths = split_paths(split, folder)
    archive = folder / ARCHIVE_NAME
    try:
        if all(map(_is_official, paths)):
            return paths
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder / LOCK, folder, wait=True):  # the parts are continued, and the archive is all splits'
            missing = [path for path in paths if not _is_official(path)]
            for path in missing:
                _set_aside(path)
            if not (archive.is_file() and _md5(archive) == ARCHIVE_MD5):
                with requests.Session() as session:
                    # Positions and lengths count the archive's own bytes: nothing may compress them on the way.
                    session.headers["Accept-Encoding"] = "identity"
                    with contextlib.suppress(RangeNotSupported):
                        _fetch_members(session, url, missing, waits)
                        return paths
                    _set_aside(archive)
                    _fetch_archive(session, url, archive, waits)
            _extract(archive, missing)
    except (requests.RequestException, urllib3.exceptions.HTTPError, RemoteZipError) as error:
        raise UserError(
            f"NIST could not be reached at {url} ({_first_cause(error)}): check the connection and run "
            f"again, which continues where this stopped, or use {WAYS_OUT}."
        ) from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{url} is not the EMNIST archive ({error.args[0]}): use {WAYS_OUT}.") from error
    except OSError as error:
        raise UserError(
            f"the official files cannot be kept in {folder} ({error.strerror or error}): "
            f"make room there or choose another folder."
        ) from error
    return paths


def split_paths(split: str, folder: Path) -> list[Path]:
    """Train images, train labels, test images and test labels under their official names, there or not."""
    return [folder / file_name(split, part, kind) for part in ("train", "test") for kind in ("images", "labels")]


def _md5(path: Path) -> str:
    state = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _is_official(path: Path) -> bool:
    return path.is_file() and sha256(path) == OFFICIAL_FILES[path.name].sha256


def _set_aside(path: Path) -> None:
    """Gives what is no official file, and maybe somebody's own, another name that nothing has."""
    if not os.path.lexists(path):
        return
    for i in itertools.count(1):
        other = path.with_name(f"{path.name}.not-official-{i}")
        if not os.path.lexists(other):
            path.rename(other)
            say(f"{path} is not the official file: it is {other.name} now.")
            return


def _part(path: Path) -> Path:
    """Where the transfer of a file is kept until it is whole."""
    return path.with_name(f".{path.name}.emnist-dali-part")


def _fetch_members(session: requests.Session, url: str, paths: list[Path], waits: Sequence[float]) -> None:
    with RemoteZip(url, session=session, timeout=TIMEOUT) as archive:
        members = [archive.getinfo(f"{ARCHIVE_FOLDER}/{path.name}") for path in paths]
        ends = sorted([*(member.header_offset for member in archive.infolist()), archive.start_dir])
        total = archive.size()
    for path, member in zip(paths, members, strict=True):
        part = _part(path)
        # With its local header, since only that one tells its own length, and up to what comes next.
        first = member.header_offset
        size = ends[bisect_right(ends, first)] - first
        for _ in range(2):
            _fetch_bytes(session, url, part, first, size, total, waits)
            placed = _place(_content(part, member), path)
            part.unlink()
            if placed:
                break
        else:
            raise UserError(f"{url} sends {path.name} with a sha256 that is not the official one: use {WAYS_OUT}.")


def _content(part: Path, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member whose local header and data are `part`; a damaged member ends early."""
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


def _fetch_archive(session: requests.Session, url: str, archive: Path, waits: Sequence[float]) -> None:
    part = _part(archive)
    response = session.head(url, allow_redirects=True, timeout=TIMEOUT)
    response.raise_for_status()
    total = int(response.headers["Content-Length"])
    for _ in range(2):
        _fetch_bytes(session, url, part, 0, total, total, waits)
        if _md5(part) == ARCHIVE_MD5:
            part.replace(archive)
            return
        part.unlink()
    raise UserError(f"{url} sends something else than the EMNIST archive (its md5 differs): use {WAYS_OUT}.")


def _extract(archive: Path, paths: list[Path]) -> None:
    with zipfile.ZipFile(archive) as members:
        for path in paths:
            with members.open(f"{ARCHIVE_FOLDER}/{path.name}") as stream:
                if not _place(iter(partial(stream.read, CHUNK), b""), path):
                    raise UserError(f"{archive} holds {path.name} with a wrong sha256: delete it and run again.")


def _place(content: Iterable[bytes], path: Path) -> bool:
    """Give `content` the name `path` if it is the official file of that name."""
    official = OFFICIAL_FILES[path.name]
    digest, size = hashlib.sha256(), 0
    with contextlib.suppress(_NotOfficialError), replacing(path) as stream:
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
    session: requests.Session, url: str, part: Path, first: int, size: int, total: int, waits: Sequence[float]
) -> None:
    """Continue `part` until it holds `size` bytes, from `first` on, of the remote file of `total` bytes.

    Whether they are the right ones, or `part` was too long before, is for the caller's hash to say.
    A server that answers with the whole file is taken at its word if all of it is wanted, and that attempt
    starts anew; else RangeNotSupported. requests.RequestException after the last of `waits`.
    """
    waits = iter(waits)
    with progress(description=part.name.split(".")[1], total=size, unit="B") as bar:
        while (have := part.stat().st_size if part.exists() else 0) < size:
            bar.update(have - bar.n)
            wanted = {"Range": f"bytes={first + have}-{first + size - 1}"}
            try:
                with session.get(url, headers=wanted, stream=True, timeout=TIMEOUT) as response:
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
                wait = next(waits, None)
                if wait is None:
                    raise
                time.sleep(wait)


def _check_range(response: requests.Response, first: int, total: int) -> None:
    sent = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", sent)
    if not match or (int(match[1]), int(match[2])) != (first, total):
        raise UserError(
            f"{response.url} sends the range {sent!r} where bytes from {first} on of {total} were asked for: "
            f"the archive has changed or a proxy is broken; run again, or use {WAYS_OUT}."
        )


def _first_cause(error: BaseException) -> str:
    """What started a chain of exceptions: «Connection refused», not three layers of pools and retries."""
    while error.__context__ is not None:
        error = error.__context__
    return str(getattr(error, "strerror", None) or error)
