#!/usr/bin/env python
"""What only a GPU can show, planned for a quarter of an hour: `make gpu-check`.

python bench/gpu_check.py --source ../shared/emnist/balanced    idx files, if the split is not prepared yet
python bench/gpu_check.py --device cpu                          the same on a CPU, as a rehearsal
python bench/gpu_check.py --part fast --part "training step"    these parts only

The most important comes first: the batches of tests/gpu against the CPU's, the speed of each backend, `fast`, the
training step's speed, the rest of tests/gpu, a short profiled run of `published`, and then the peers and the values
of each setting; needs no network. The JSON and the Markdown file in bench/records/ are rewritten while a part runs
and after it, so that they hold what was measured whenever it is cut off. A part that fails is reported there with the
end of its output, and the others still run.

A second check on the same day goes on with its files: parts that succeeded are kept, the others run again, and what a
failed one had measured stays beside its new result. To measure all again, name another --out.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from threading import Event, Thread, Timer
from time import perf_counter
from typing import Any

import click
import torch

import throughput
from emnist_dali.commands.options import with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import parse_json, read_json, write_atomic
from emnist_dali.core.machine import environment
from emnist_dali.data.manifest import MANIFEST
from emnist_dali.data.prepare import prepare, split_folder
from result_file import check_result_file, write_result_file

ROOT = Path(__file__).resolve().parent.parent
# Seconds, after which a part is considered stuck: a cold start imports torch and DALI from a slow disk, compiles the
# CPU kernels, and then EfficientNet-B2, which takes minutes.
LIMIT = 1200
LIMITS = {"parity": 300}  # it comes first and compiles little: if it is stuck, the others must still have time
SAVE_EVERY = 1  # seconds between two writes of the record while a part runs
END_WITHIN = 20  # seconds in which a part may write its checkpoint when it is ended
TAIL = 4000  # characters
TIMED_OUT, INTERRUPTED = 124, 130  # exit codes, as of timeout(1) and of a shell after Ctrl-C
# In the names of those of tests/gpu that compare batches with the CPU's, as pytest's -k takes it.
PARITY = "equalize or grey_level or half_images or padded or reach_the_gpu_whole or are_the_cpus"
PIPELINE_GROUPS = ("operators", "concurrency", "block", "queue", "ahead", "threads", "gathering", "codec")
SCRATCH = "emnist-dali-check-"  # the scratch folder's name begins so
DOCUMENT = '{"benchmark"'  # the beginning of the line that has one


def parts(data: list[str], device: str, scratch: Path, seconds: float = 0.5) -> dict[str, list[str]]:
    """Each part's command, the most important first."""
    python, bench = sys.executable, str(ROOT / "bench")
    on_gpu = device.startswith("cuda")
    recipe = "published" if on_gpu else "cpu"
    train = [python, "-m", "emnist_dali", "train", "--recipe", recipe, "--no-pretrained"]
    common = ["--device", device, *data]
    throughput = [python, f"{bench}/throughput.py", "--seconds", str(seconds)]
    settings = [python, f"{bench}/pipeline_settings.py", "--seconds", str(seconds)]
    fast = [python, f"{bench}/time_to_accuracy.py", "--recipe", "fast", "--runs", "3"]
    tests = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu"), "-k"]
    stages = [*throughput, "--stage", "read", "--stage", "pipeline", "--stage", "mix"]
    return {
        "parity": [*tests, PARITY],
        "pipeline": [*stages, "--backend", "resident" if on_gpu else "cpu", *common],
        "pipeline, dali": [*throughput, "--stage", "pipeline", "--backend", "dali", *common],
        "backends": [*settings, "--group", "warp", *common],
        "fast": [*fast, *([] if on_gpu else ["--epochs", "1"]), *common],
        "training step": [*throughput, "--stage", "model", "--stage", "train", *common],
        "tests": [*tests, f"not ({PARITY})"],
        "train": [*train, "--steps", "200" if on_gpu else "20", "--profile", "--out", str(scratch / "run"), *common],
        "step settings": [*settings, "--group", "step", "--group", "output", *common],
        "peers": [*throughput, "--stage", "peers", "--image-size", "112", *common],
        "pipeline settings": [*settings, *(f"--group={name}" for name in PIPELINE_GROUPS), *common],
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="Source of Balanced, if it is not prepared.  [default: glyphs]")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True,
              help="Another GPU than the first: CUDA_VISIBLE_DEVICES=1.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=0.5, show_default=True,
              help="Per repetition of a measurement.")  # fmt: skip
@click.option("--part", "names", multiple=True, help="Only this; repeatable.  [default: all]")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "bench" / "records",
              help="Folder of the result files.  [default: bench/records]")  # fmt: skip
def main(data_dir: str, source: str | None, device: str, seconds: float, names: tuple[str, ...], out: Path) -> None:
    """Tests, benchmark and short trainings on this machine's GPU, with a JSON and a Markdown file of the results."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; rehearse on the CPU with --device cpu.")
    raise_on_signals()
    machine = environment(device)
    data = ["--data-dir", os.path.abspath(data_dir)]  # the parts run in ROOT
    if unknown := [name for name in names if name not in parts(data, device, Path())]:
        raise click.BadParameter(
            f"{unknown[0]} is none of {', '.join(parts(data, device, Path()))}.", param_hint="--part"
        )
    try:
        if source:
            prepare("balanced", source, data_dir)
        elif not (split_folder(data_dir, "balanced", None) / MANIFEST).exists():
            prepare("balanced", "glyphs", data_dir)
            data += ["--source", "glyphs"]
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{file_prefix(machine, device)}{date.today():%Y%m%d}.json"
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            commands = parts(data, device, Path(scratch), seconds)
            results = check(commands, path, machine, names)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(f"{path} and {path.with_suffix('.md').name}")
    if failed := [name for name in names or results if results[name]["exit_code"]]:
        raise click.ClickException(f"{', '.join(failed)} failed; the result file has the end of the output.")


def raise_on_signals() -> None:
    """Makes SIGTERM and SIGHUP what Ctrl-C is: the part is ended, and the record written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def file_prefix(machine: dict[str, Any], device: str) -> str:
    """What the name of a record of checks of `device` on `machine` begins with; the date follows."""
    name = machine["gpu"] if device.startswith("cuda") else machine["cpu"]
    return f"check-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-"


def check(
    commands: dict[str, list[str]], path: Path, machine: dict[str, Any], names: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Runs the parts, or those of `names`; returns their results, also written to `path` and beside it as they come.

    The exit code of a part that runs or was never reached is None in the files. Parts that succeeded in an earlier
    check in `path` are not run again; raises UserError if those had other commands or package versions.
    """
    before = _parts_before(path, commands, machine)
    results = {name: before.get(name) or _result(command) for name, command in commands.items()}

    def save(name: str, result: dict[str, Any]) -> None:
        had = before.get(name)
        results[name] = {**result, "earlier": had} if had and (had["output"] or had["document"]) else result
        document = {"benchmark": "gpu_check", "machine": machine, "parts": results}
        write_result_file(path, document)
        write_atomic(path.with_suffix(".md"), markdown(document).encode())

    for name, command in commands.items():
        if names and name not in names:
            continue
        if results[name]["exit_code"] == 0:
            click.echo(f"… {name}: kept from {path}", err=True)
        else:
            run(name, command, LIMITS.get(name, LIMIT), partial(save, name))
    return results


def _parts_before(path: Path, commands: dict[str, list[str]], machine: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The results in `path`; raises UserError if one that succeeded is not what `commands` would measure."""
    check_result_file(path, "gpu_check")
    if not path.exists():
        return {}
    before = read_json(path, "choose another --out")
    for name, part in before["parts"].items():
        same = _comparable(part["command"]) == _comparable(_portable(commands.get(name, [])))
        if part["exit_code"] == 0 and not (same and before["machine"]["packages"] == machine["packages"]):
            raise UserError(f"{path} holds «{name}» with other settings or package versions; choose another --out.")
    return before["parts"]


def _portable(command: list[str]) -> str:
    """As one types it in the project's folder, because records are read on other machines."""
    return shlex.join(command).replace(sys.executable, "python").replace(f"{ROOT}{os.sep}", "")


def _comparable(command: str) -> str:
    """Without the scratch folder, which is another one each time."""
    return re.sub(rf"\S*{SCRATCH}\w+", "", command)


def _result(
    command: list[str], code: int | None = None, seconds: float = 0, output: str = "",
    document: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "command": _portable(command), "exit_code": code, "seconds": seconds, "output": output, "document": document,
    }  # fmt: skip


def run(
    name: str,
    command: list[str],
    limit: float = LIMIT,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Runs a part: its exit code (124 after `limit`), seconds, the end of its output, and the document it printed.

    `save` gets the result so far while the part runs, and the whole one at its end, also at that by Ctrl-C.
    """
    click.echo(f"… {name}: {shlex.join(command)}", err=True)
    started = perf_counter()
    lines: list[str] = []
    document = None

    def result(code: int | None) -> dict[str, Any]:
        return _result(command, code, perf_counter() - started, "\n".join(lines).rstrip()[-TAIL:], document)

    def keep_saved() -> None:
        while not ended.wait(SAVE_EVERY):
            save(result(None))

    save(result(None))
    ended, saver, expired = Event(), Thread(target=keep_saved), []
    timer = Timer(limit, lambda: (expired.append(True), _end(process)))
    code = INTERRUPTED
    # In one stream, so that an error is where it happened.
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        timer.start()
        saver.start()
        assert process.stdout
        for line in process.stdout:
            if found := _document(line):
                document = found
            else:
                lines.append(line.rstrip("\n"))
        code = TIMED_OUT if process.wait() and expired else process.returncode
    except KeyboardInterrupt:
        _end(process)
        raise
    finally:
        timer.cancel()
        ended.set()
        saver.join()
        save(result(code))
    return result(code)


def _document(line: str) -> dict[str, Any] | None:
    """The document that a line of output is; None for any other, also for half of one."""
    if line.startswith(DOCUMENT):
        with suppress(ValueError, RecursionError):
            return parse_json(line)
    return None


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a part and the processes that it started, which would otherwise hold its output open and the GPU busy."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(END_WITHIN)
    finally:  # a second Ctrl-C ends the wait
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def markdown(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    machine = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    text = [
        f"# {machine['gpu'] or machine['cpu']}, {machine['time'][:10]}",
        f"{machine['cpus']} CPUs ({machine['cpu']}), Python {machine['python']}, {packages}.",
        *([_gpu_line(machine)] if machine["gpu"] else []),
        f"`{machine['command']}`",
    ]
    for name, part in document["parts"].items():
        code = part["exit_code"]
        end = ", not at its end" if code is None else f", failed with exit code {code}" if code else ""
        if code is None and not part["seconds"]:
            end = ", not begun"
        text.append(f"## {name} ({part['seconds']:.0f} s{end})\n\n`{part['command']}`")
        result = part["document"]
        body = throughput.table(result) if result and result["benchmark"] == "throughput" else part["output"]
        text.append(f"```\n{body}\n```")
    return "\n\n".join(text) + "\n"


def _gpu_line(machine: dict[str, Any]) -> str:
    def known(name: str) -> str:
        return "?" if machine[name] is None else f"{machine[name]:g}"

    return (
        f"Driver {machine['gpu_driver'] or '?'}, power limit {known('gpu_power_limit_watts')} W; clocks before the "
        f"first part: SM {known('gpu_sm_mhz')} of {known('gpu_sm_max_mhz')} MHz, memory {known('gpu_memory_mhz')} of "
        f"{known('gpu_memory_max_mhz')} MHz."
    )


if __name__ == "__main__":
    main()
