"""SIGTERM, SIGINT and SIGHUP end a run between two steps; a second signal ends the process at once."""

import os
import signal
import threading
from contextlib import suppress
from time import monotonic
from types import FrameType

from . import distributed

# SIGHUP arrives when the terminal or the ssh connection is gone.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
_HANGUP = getattr(signal, "SIGHUP", None)
# Seconds in which a repeated signal counts as the same one. A Ctrl-C reaches each rank twice: from the terminal, and
# forwarded by torchrun. A lost connection is reported by the kernel, by the shell and by systemd, which adds SIGTERM.
DUPLICATE_WINDOW = 2.0
# Seconds after which a rank exits even in mid-step: a step that waits for a rank that is gone never finishes.
GRACE_PERIOD = 10.0


class Stop(BaseException):
    """A signal has arrived, on this rank or another."""


class Interrupt:
    """Context manager that notes the first signal in `signum` instead of letting it end the process."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> "Interrupt":
        # Python allows handlers only in the main thread.
        in_main_thread = threading.current_thread() is threading.main_thread()
        handled = [signum for signum in SIGNALS if in_main_thread and not _under_nohup(signum)]
        self._previous = {signum: signal.signal(signum, self._handle) for signum in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            if handler is not None:  # None: it was installed by a C library
                signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            if signum != _HANGUP and not self._is_duplicate():
                os._exit(128 + signum)
            return
        self.signum, self._time = signum, monotonic()
        if distributed.is_main():  # print is not safe in a handler
            with suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nFinishing this step and saving; a second signal exits at once.\n")
        if distributed.world_size() > 1:
            timer = threading.Timer(GRACE_PERIOD, os._exit, (128 + signum,))
            timer.daemon = True
            timer.start()

    def _is_duplicate(self) -> bool:
        may_repeat = distributed.world_size() > 1 or self.signum == _HANGUP
        return may_repeat and monotonic() - self._time <= DUPLICATE_WINDOW


def _under_nohup(signum: int) -> bool:
    return signum == _HANGUP and signal.getsignal(signum) == signal.SIG_IGN
