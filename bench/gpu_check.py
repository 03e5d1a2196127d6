#!/usr/bin/env python
"""All that only a GPU can show, in about ten minutes: `make gpu-check`.

python bench/gpu_check.py --source ../shared/emnist/balanced    idx files, where the split is not prepared yet
python bench/gpu_check.py --device cpu                          the same on a CPU, as a rehearsal

Runs tests/gpu, the benchmark with its peers, the settings of the pipeline, a short `seed` run with a profile, and
`fast`; needs no network. Writes one JSON and one Markdown file into bench/records/. A part that fails is recorded
with the end of its output, and the rest goes on.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import torch

import throughput
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import write_whole
from emnist_dali.core.machine import environment
from emnist_dali.data.manifest import MANIFEST
from emnist_dali.data.prepare import prepare, split_folder
from record import write_record

ROOT = Path(__file__).resolve().parent.parent
# Seconds; a part that takes longer hangs.
LIMIT = 420
TAIL = 4000  # characters


def parts(data: list[str], device: str, scratch: Path) -> dict[str, list[str]]:
    """Each part's command."""
    python, bench = sys.executable, str(ROOT / "bench")
    on_gpu = device.startswith("cuda")
    train = [python, "-m", "emnist_dali", "train", "--recipe", "seed" if on_gpu else "cpu", "--no-pretrained"]
    here = ["--device", device, *data]
    return {
        "tests": [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu")],
        "throughput": [python, f"{bench}/throughput.py", "--seconds", "1", *here],
        "train": [*train, "--steps", "200" if on_gpu else "20", "--profile", "--out", str(scratch / "run"), *here],
        "fast": [python, f"{bench}/time_to_accuracy.py", "--recipe", "fast", "--runs", "3", *here],
        "variants": [python, f"{bench}/variants.py", "--seconds", "0.5", *here],
    }


def accuracy(data: list[str], device: str) -> dict[str, list[str]]:
    """The starting recipe against `best`, both whole; the run folders stay, so that it can be gone on with."""
    command = [sys.executable, str(ROOT / "bench" / "ablation.py"), "--recipe", "seed", "--recipe", "best"]
    command += ["--no-pretrained", "--device", device, *data]
    runs = ROOT / "runs"
    return {
        "accuracy": [*command, "--seeds", "2", "--out", str(runs / "accuracy")],
        "accuracy on ByClass": [
            *command,
            "--split",
            "byclass",
            "--seeds",
            "1",
            "--out",
            str(runs / "accuracy-byclass"),
        ],
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="Where to prepare Balanced from, if it is not there; drawn glyphs without.")
@click.option("--device", default="cuda", show_default=True)
@click.option(
    "--accuracy", "whole", is_flag=True, help="Also train `seed` and `best`, whole: hours; ByClass as prepared."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "bench" / "records", help="Folder of the records."
)
def main(data_dir: str, source: str | None, device: str, whole: bool, out: Path) -> None:
    """Tests, benchmark and short trainings on this machine's GPU; one JSON and one Markdown record."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; --device cpu rehearses without one.")
    data = ["--data-dir", data_dir]
    try:
        if source:
            prepare("balanced", source, data_dir)
        elif not (split_folder(data_dir, "balanced", None) / MANIFEST).exists():
            prepare("balanced", "glyphs", data_dir)
            data += ["--source", "glyphs"]
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="emnist-dali-check-") as scratch:
            results = {name: run(name, command) for name, command in parts(data, device, Path(scratch)).items()}
        if whole:
            results |= {name: run(name, command, None) for name, command in accuracy(data, device).items()}
        machine = environment()
        document = {"benchmark": "gpu_check", "machine": machine, "parts": results}
        name = re.sub(r"[^a-z0-9]+", "-", (machine["gpu"] or machine["cpu"]).lower()).strip("-")
        path = out / f"check-{name}-{date.today():%Y%m%d}.json"
        write_record(path, document)
        write_whole(path.with_suffix(".md"), markdown(document).encode())
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{path} and {path.with_suffix('.md').name}")
    if failed := [name for name, result in results.items() if result["exit_code"]]:
        raise click.ClickException(f"{', '.join(failed)} failed; the record holds the end of the output.")


def run(name: str, command: list[str], limit: float | None = LIMIT) -> dict[str, Any]:
    """One part: its exit code (124: too slow), seconds, the end of its output, and the document it printed last."""
    click.echo(f"… {name}: {' '.join(command)}", err=True)
    started = perf_counter()
    try:
        # One stream: what failed stands where it happened.
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, timeout=limit, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, output = 124, (late.stdout or b"").decode(errors="replace")
    lines = output.rstrip().splitlines()
    document = None
    if lines and lines[-1].startswith('{"benchmark"'):
        document = json.loads(lines.pop())
    return {
        "command": " ".join(command),
        "exit_code": code,
        "seconds": perf_counter() - started,
        "output": "\n".join(lines)[-TAIL:],
        "document": document,
    }


def markdown(document: dict[str, Any]) -> str:
    """The record for people."""
    machine = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    text = [
        f"# {machine['gpu'] or machine['cpu']}, {machine['time'][:10]}",
        f"{machine['cpus']} CPUs ({machine['cpu']}), Python {machine['python']}, {packages}.",
        f"`{machine['command']}`",
    ]
    for name, part in document["parts"].items():
        outcome = "" if part["exit_code"] == 0 else f", failed with exit code {part['exit_code']}"
        text.append(f"## {name} ({part['seconds']:.0f} s{outcome})\n\n`{part['command']}`")
        found = part["document"]
        body = throughput.table(found) if found and found["benchmark"] == "throughput" else part["output"]
        text.append(f"```\n{body}\n```")
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
