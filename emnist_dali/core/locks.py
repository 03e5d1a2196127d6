"""One writer per folder: a lock that the system releases when the process holding it exits, however it exits."""

import errno
import json
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from .errors import InUseError, UserError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

LOCK = ".emnist-dali.lock"
# Windows locks bytes, and others cannot read those: one beyond what the file holds.
_BYTE = 2**30
_REOPENINGS = 10  # not without end: some network file systems change a file's number
_RETRY = 0.2  # seconds; only flock can wait


class Lock:
    """Holds an exclusive lock on the file `path`, which is created if it is missing, until `close`.

    `guarded` is the folder that messages name. If another process or thread holds the lock, raises InUseError, which
    names the holder; with `wait`, says so and waits instead. Raises UserError if the file cannot be created. On file
    systems without locking it has no effect.
    """

    def __init__(self, path: Path, guarded: Path, wait: bool = False) -> None:
        self.path = path
        self._open(guarded, wait)
        for _ in range(_REOPENINGS):
            if self._is_in_place():
                break
            self.close()
            self._open(guarded, wait)

    def _open(self, guarded: Path, wait: bool) -> None:
        path = self.path
        try:
            # Never through a link: its target is not ours.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            self._descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); choose another folder.") from error
        try:
            self._acquire(guarded, wait)
        except BaseException:
            self.close()
            raise

    def _is_in_place(self) -> bool:
        """Whether this file is the one that others open: its last holder may have removed it before it was locked."""
        if not fcntl:  # Windows removes no open file
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _acquire(self, guarded: Path, wait: bool) -> None:
        try:
            _lock(self._descriptor)
        except BlockingIOError:
            holder = self._describe_holder()
            if not wait:
                raise InUseError(f"{guarded} is in use by {holder}; wait for it to finish, or stop it.") from None
            from .progress import say

            say(f"Waiting for {guarded}, which is in use by {holder}.")
            _wait_and_lock(self._descriptor)
        except OSError:  # this file system has no locks
            return
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, json.dumps(holder).encode())

    def _describe_holder(self) -> str:
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            holder = json.loads(os.read(self._descriptor, 4096))
            pid, host, since = (
                int(holder["pid"]),
                ascii(holder["host"])[1:-1],
                datetime.fromisoformat(holder["since"]),
            )
        except (OSError, ValueError, TypeError, LookupError):  # it has not written its details yet
            return "another process"
        return f"process {pid} on {host} since {since:%Y-%m-%d %H:%M:%S}"

    def close(self) -> None:
        """Releases the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(descriptor: int) -> None:
    """Locks an open file; raises BlockingIOError if another process or thread has, OSError without locks."""
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(descriptor, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


def _wait_and_lock(descriptor: int) -> None:
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    while True:
        with suppress(BlockingIOError):
            _lock(descriptor)
            return
        time.sleep(_RETRY)
