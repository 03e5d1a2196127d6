"""What a step must not do, done: `test_rehearsal.py` sees that the stand-in notices. Runs in a process of its own."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .libraries import install
from .null_gpu import Kind, Log


def main(out: str) -> None:
    log = Log()
    library = install(log)  # noqa: F841  (for as long as it lives)
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    deeds: dict[str, Callable[[], object]] = {
        "item": there[0].item,
        "cpu": there.cpu,
        "cuda": here.cuda,
        "synchronize": torch.cuda.synchronize,
    }
    seen: dict[str, list[str] | str] = {}
    for name, deed in deeds.items():
        log.clear()
        deed()
        seen[name] = [call.kind.name for call in log.calls() if call.kind not in (Kind.KERNEL, Kind.ALLOCATE)]
    for name in ("synchronize", "item"):
        seen[f"{name} in a capture"] = _captured(deeds[name])
    Path(out).write_text(json.dumps(seen))


def _captured(deed: Callable[[], object]) -> str:
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            deed()
    except Exception as error:
        return type(error).__name__
    return "no error"


if __name__ == "__main__":
    main(*sys.argv[1:])
