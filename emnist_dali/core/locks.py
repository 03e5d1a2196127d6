"""One writer a folder: a lock that the kernel releases with the process that holds it, however that ends."""

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from .errors import InUseError, UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

LOCK = ".emnist-dali.lock"


class Lock:
    """Holds the file `path`, which is made and stays, until `close`; `what` it guards is for messages.

    Raises InUseError, which names the holder, where another process or thread has it; with `wait` it says so through
    `say` and waits. Raises UserError where the file cannot be made. On a file system without locks it holds nothing.
    """

    def __init__(self, path: Path, what: Path, wait: bool = False) -> None:
        self.path = path
        try:
            # Without following a link: what it leads to is somebody else's.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            self._descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); name another folder.") from error
        try:
            self._take(what, wait)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, what: Path, wait: bool) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            if not wait:
                raise InUseError(f"{what} is in use by {holder}; wait until it ends, or end it.") from None
            from .progress import say

            say(f"Waiting for {what}, which is in use by {holder}.")
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError:
            return
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        with suppress(OSError):  # of a full disk: the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(about).encode(), 0)

    def _holder(self) -> str:
        try:
            about = json.loads(os.pread(self._descriptor, 4096, 0))
            pid, host, since = int(about["pid"]), ascii(about["host"])[1:-1], datetime.fromisoformat(about["since"])
        except (OSError, ValueError, TypeError, LookupError):
            return "another process"  # which has not written yet who it is
        return f"process {pid} on {host} since {since:%Y-%m-%d %H:%M:%S}"

    def close(self) -> None:
        """Lets others in."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
