"""NIST's archives, gzip.zip of idx files and matlab.zip of .mat files; nothing is extracted."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import reason
from . import idx

# Bytes of a zip's central directory, which takes 15 times as much memory once parsed; NIST's has 3 kB.
MAX_DIRECTORY = 2**20
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NIST's; a 9-byte LZMA header can ask for gigabytes
# What reading a member of a broken archive raises; RuntimeError for an encrypted one.
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, KeyError)


def with_members(archive: Path, choices: Sequence[Sequence[str]], read: Callable[[list[zipfile.Path]], Any]) -> Any:
    """Calls `read` with one of `choices`, names of members: the first one whose folder is in the archive.

    Raises UserError, which names what is missing, for an incomplete archive, and for a damaged one.
    """
    nists = "matlab.zip" if "matlab" in archive.name.lower() else "gzip.zip"
    try:
        with _BoundedReader(io.FileIO(archive)) as file, _opened(file) as members:
            # Nothing is extracted, so no name in the archive can reach the file system.
            folders = {name.partition("/")[0] for name in members.namelist()}
            names = next((names for names in choices if names[0].partition("/")[0] in folders), choices[0])
            paths = [zipfile.Path(members, name) for name in names]
            missing = [path.at for path in paths if not path.exists()]
            if missing:
                raise UserError(f"{archive} lacks {', '.join(missing)}; use NIST's complete {nists}.")
            for path in paths:
                member = members.getinfo(path.at)
                if member.file_size > idx.MAX_BYTES:
                    raise UserError(f"{path} is too large to be EMNIST; use NIST's {nists}.")
                if member.compress_type not in COMPRESSIONS:
                    raise UserError(f"{path} is compressed by a method that NIST does not use; use NIST's {nists}.")
            return read(paths)
    except MemoryError as error:
        raise UserError(f"{archive} needs more memory than this machine has free; close other programs.") from error
    except BROKEN as error:
        raise UserError(
            f"{archive} cannot be read as a zip ({reason(error)}); use NIST's {nists} or a folder of its files."
        ) from error


def _opened(file: io.BufferedReader) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except MemoryError:
        raise
    except Exception as error:  # which may be anything for a broken directory
        raise zipfile.BadZipFile(reason(error)) from error


class _BoundedReader(io.BufferedReader):
    """Limits each read, and so the central directory: zipfile reports a longer one as truncated."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_DIRECTORY if size is None or size < 0 else min(size, MAX_DIRECTORY))
