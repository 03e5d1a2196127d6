"""`emnist-dali` in processes of its own, forked from one that has loaded torch and timm: that takes a process 9 s."""

import os
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from emnist_dali import cli

from ..training_runs import flags

# Against hangs only.
SECONDS = 120
started = 0  # processes


def start(output: Path, *arguments: Any, cwd: Path | None = None, file_bytes: int | None = None) -> BaseProcess:
    """What it prints is added to `output`; none of its files can have more than `file_bytes`, as on a full disk."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["emnist_dali.training.session", "tests.faults.processes"])
    process = context.Process(target=_main, args=(output, [str(word) for word in arguments], cwd, file_bytes))
    process.start()
    global started
    started += 1
    return process


def ended(process: BaseProcess) -> int:
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"no end in {SECONDS} s")
    return process.exitcode


def _main(output: Path, arguments: Sequence[str], cwd: Path | None, file_bytes: int | None) -> None:
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if cwd:
        os.chdir(cwd)
    if file_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    torch.set_num_threads(1)
    cli.main(arguments, prog_name="emnist-dali")


def training(data_dir: Path, *options: Any) -> tuple[Any, ...]:
    """A command: a small run on the data of the fixture `data_dir`."""
    given = ("--source", "glyphs", "--data-dir", data_dir, "--recipe", "cpu", "--device", "cpu", "--batch-size", 64)
    return ("train", "--split", "small", *given, *flags(image_size=16), *options)
