"""Runs a module or a script on the GPU that computes nothing, as far as it goes.

python -m tests.rehearsal emnist_dali train --recipe fast --backend cpu
python -m tests.rehearsal bench/gpu_check.py
"""

import os
import sys
from pathlib import Path

from . import null_gpu


def main() -> None:
    target = sys.argv[1:] if sys.argv[1].endswith(".py") else ["-m", *sys.argv[1:]]
    variables = null_gpu.for_programs(Path("build", "rehearsal").resolve())
    os.execve(sys.executable, [sys.executable, *target], variables)


if __name__ == "__main__":
    main()
