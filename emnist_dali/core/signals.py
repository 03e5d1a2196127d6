"""SIGTERM, SIGINT and SIGHUP: a run ends between two steps; a second signal ends the process at once."""

import os
import signal
import threading
from contextlib import suppress
from time import monotonic
from types import FrameType

from . import distributed

# SIGHUP comes when a terminal or an ssh connection is gone.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
_HANGUP = getattr(signal, "SIGHUP", None)
# A Ctrl-C reaches each rank twice: from the terminal, and from torchrun, which passes it on. A connection that is
# gone comes from the kernel, from the shell and from systemd, which sends SIGTERM too.
PASSED_ON_WITHIN = 2.0
# A rank that waits for one that is gone cannot finish its step: it ends after so many seconds.
GRACE = 10.0


class Stop(BaseException):
    """A signal was noted, on this rank or another."""


class Interrupt:
    """Remembers the first signal while the block lasts."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> "Interrupt":
        # Python lets only the main thread have handlers.
        here = threading.current_thread() is threading.main_thread()
        heard = [s for s in SIGNALS if here and not _under_nohup(s)]
        self._before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            if handler is not None:  # None is one of a C library
                signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            if signum != _HANGUP and not (self._may_come_twice() and monotonic() - self._when <= PASSED_ON_WITHIN):
                os._exit(128 + signum)
            return
        self.signum, self._when = signum, monotonic()
        if distributed.is_main():  # print is not safe in a handler
            with suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nFinishing the step and saving; a second signal ends at once.\n")
        if distributed.world_size() > 1:
            timer = threading.Timer(GRACE, os._exit, (128 + signum,))
            timer.daemon = True
            timer.start()

    def _may_come_twice(self) -> bool:
        return distributed.world_size() > 1 or self.signum == _HANGUP


def _under_nohup(signum: int) -> bool:
    return signum == _HANGUP and signal.getsignal(signum) == signal.SIG_IGN
