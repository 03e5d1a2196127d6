"""How much is tried: ATTACK_FACTOR times what `make test` tries, at random from ATTACK_SEED; and how much was."""

import os
import random
import sys
from collections import Counter

FACTOR = int(os.environ.get("ATTACK_FACTOR", "1"))
SEED = int(os.environ.get("ATTACK_SEED", random.randrange(2**32) if FACTOR > 1 else 0))

inputs: Counter[str] = Counter()
processes: Counter[str] = Counter()


def tried() -> None:
    """One more input of the test that runs; a test that never calls it is one input itself."""
    inputs[running()] += 1


def running() -> str:
    """The file and the function of the test that runs, without its parameters."""
    return os.environ.get("PYTEST_CURRENT_TEST", "").split("[")[0].split(" ")[0].removeprefix("tests/attack/")


def _count_processes(event: str, arguments: tuple) -> None:
    if event == "subprocess.Popen" and "tests/attack/" in os.environ.get("PYTEST_CURRENT_TEST", ""):
        processes[running()] += 1


sys.addaudithook(_count_processes)
