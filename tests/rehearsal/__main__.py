"""Runs a module or a script on the GPU that computes nothing, as far as it goes.

python -m tests.rehearsal emnist_dali train --recipe fast --backend cpu
python -m tests.rehearsal bench/gpu_check.py
"""

import os
import runpy
import sys
from pathlib import Path

from . import null_gpu


def main() -> None:
    if not null_gpu.is_seen():
        command = [sys.executable, "-m", "tests.rehearsal", *sys.argv[1:]]
        os.execve(sys.executable, command, null_gpu.environment(Path("build", "rehearsal").resolve()))
    from .libraries import install

    replaced = install(null_gpu.Log())  # noqa: F841  (for as long as it lives)
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
