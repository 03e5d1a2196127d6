"""One writer per folder: a lock that the kernel releases when the process holding it exits, however it exits."""

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from .errors import InUseError, UserError

try:
    import fcntl
except ImportError:  # Windows: no locking
    fcntl = None

LOCK = ".emnist-dali.lock"


class Lock:
    """Holds an exclusive lock on the file `path`, which is created and left in place, until `close`.

    `guarded` is the folder that messages name. If another process or thread holds the lock, raises InUseError, which
    names the holder; with `wait`, says so and waits instead. Raises UserError if the file cannot be created. On file
    systems without locking it has no effect.
    """

    def __init__(self, path: Path, guarded: Path, wait: bool = False) -> None:
        self.path = path
        try:
            # Never through a link: its target is not ours.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            self._descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); choose another folder.") from error
        try:
            self._acquire(guarded, wait)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _acquire(self, guarded: Path, wait: bool) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._describe_holder()
            if not wait:
                raise InUseError(f"{guarded} is in use by {holder}; wait for it to finish, or stop it.") from None
            from .progress import say

            say(f"Waiting for {guarded}, which is in use by {holder}.")
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError:  # this file system has no locks
            return
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(os.pread(self._descriptor, 4096, 0))
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
