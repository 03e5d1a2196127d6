"""How each input is judged, counted and kept from doing harm."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import pytest

# Loaded before the memory is limited: torch alone maps gigabytes of addresses.
import timm  # noqa: F401
import torch  # noqa: F401

from emnist_dali.core.errors import UserError

SECONDS = 60  # an input may take; it is a hang then. The largest takes 2 on a core of its own, over 20 on a busy one.
MEMORY = 2 * 2**30
# Audit events by which a file could run something or reach the network.
FORBIDDEN = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "socket.connect")
CHANGING = ("os.mkdir", "os.remove", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

inputs: Counter[str] = Counter()
refused: Counter[str] = Counter()
seconds: Counter[str] = Counter()
_allowed: list[str] = []  # where the reader that runs just now may write
_harm: list[str] = []


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for a broken file."""


def _watch(event: str, arguments: tuple) -> None:
    if not _allowed:
        return
    if event in FORBIDDEN:
        _harm.append(f"{event} {arguments[0]!r}")
    elif event in CHANGING or (event == "open" and (arguments[2] or 0) & WRITING):
        _harm.extend(_outside(arguments[0]))
    elif event in ("os.rename", "os.link", "os.symlink"):
        _harm.extend(_outside(arguments[1]))


def _outside(path: Any) -> list[str]:
    if not isinstance(path, str | os.PathLike):
        return []
    real = os.path.realpath(path)
    inside = any(real.startswith(folder) for folder in _allowed)
    return [] if inside or "__pycache__" in real else [f"{real} is written"]


sys.addaudithook(_watch)


def _hang(*_: Any) -> None:
    raise Hang(f"more than {SECONDS} s")


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _harm.clear()
    _allowed.append(os.path.realpath(folder))
    try:
        yield
    finally:
        _allowed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not _harm, _harm


@pytest.fixture
def attempt(request: pytest.FixtureRequest) -> Callable:
    """Calls `read` on an input under `path`: its result, or None where it refused the input as it should.

    With `reserves` it may ask for more than MEMORY, as long as it is content with not getting it.
    """
    kind = request.node.originalname.removeprefix("test_").replace("_", " ")

    def attempt(read: Callable[[], Any], path: Path, reserves: bool = False) -> Any:
        inputs[kind] += 1
        start = process_time()
        try:
            with _guarded(path if path.is_dir() else path.parent):
                return read()
        except UserError as error:
            refusal = error
        finally:
            seconds[kind] += process_time() - start
        refused[kind] += 1
        message = str(refusal)
        assert str(path) in message
        assert message.isprintable(), message
        assert message.endswith(".")
        assert len(message) < 1_000 + 2 * len(str(path))
        assert reserves or not isinstance(refusal.__cause__, MemoryError), message
        return None

    return attempt


@pytest.fixture(scope="package", autouse=True)
def _limited_memory() -> Iterator[None]:
    """An input for which a reader asks for more than MEMORY meets a MemoryError, and `attempt` fails then."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # macOS has no such limit, Windows no `resource`
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(statm.read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the inputs of one test file."""
    return tmp_path_factory.mktemp("inputs")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not inputs:
        return
    terminalreporter.section("inputs tried")
    terminalreporter.write_line(f"{'kind':32}{'inputs':>9}{'refused':>9}{'CPU s':>9}")
    for kind in inputs:
        terminalreporter.write_line(f"{kind:32}{inputs[kind]:9,}{refused[kind]:9,}{seconds[kind]:9.1f}")
    totals = (sum(counter.values()) for counter in (inputs, refused, seconds))
    terminalreporter.write_line("{:32}{:9,}{:9,}{:9.1f}".format("all", *totals))
