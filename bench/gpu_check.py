#!/usr/bin/env python
"""Everything that only a GPU can show, in about ten minutes: `make gpu-check`.

python bench/gpu_check.py --source ../shared/emnist/balanced    idx files, if the split is not prepared yet
python bench/gpu_check.py --device cpu                          the same on a CPU, as a rehearsal

Runs tests/gpu, the benchmark with its peers, the pipeline's settings, a short profiled run of `published`, and
`fast`; needs no network. Writes the result as a JSON and a Markdown file to bench/records/. A part that fails is
reported there with the end of its output, and the others still run.
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
from emnist_dali.core.files import write_atomic
from emnist_dali.core.machine import environment
from emnist_dali.data.manifest import MANIFEST
from emnist_dali.data.prepare import prepare, split_folder
from emnist_dali.options import with_flags
from result_file import write_result_file

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 420  # seconds, after which a part is considered stuck
TAIL = 4000  # characters


def parts(data: list[str], device: str, scratch: Path) -> dict[str, list[str]]:
    """Each part's command."""
    python, bench = sys.executable, str(ROOT / "bench")
    on_gpu = device.startswith("cuda")
    recipe = "published" if on_gpu else "cpu"
    train = [python, "-m", "emnist_dali", "train", "--recipe", recipe, "--no-pretrained"]
    common = ["--device", device, *data]
    return {
        "tests": [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu")],
        "throughput": [python, f"{bench}/throughput.py", "--seconds", "1", *common],
        "train": [*train, "--steps", "200" if on_gpu else "20", "--profile", "--out", str(scratch / "run"), *common],
        "fast": [python, f"{bench}/time_to_accuracy.py", "--recipe", "fast", "--runs", "3", *common],
        "pipeline settings": [python, f"{bench}/pipeline_settings.py", "--seconds", "0.5", *common],
    }


def accuracy(data: list[str], device: str) -> dict[str, list[str]]:
    """`published` against `improved`, trained completely; the run folders are kept, so that it can be resumed."""
    command = [sys.executable, str(ROOT / "bench" / "ablation.py"), "--recipe", "published", "--recipe", "improved"]
    command += ["--no-pretrained", "--device", device, *data]
    out, out_byclass = str(ROOT / "runs" / "accuracy"), str(ROOT / "runs" / "accuracy-byclass")
    return {
        "accuracy": [*command, "--seeds", "2", "--out", out],
        "accuracy on ByClass": [*command, "--split", "byclass", "--seeds", "1", "--out", out_byclass],
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="Source of Balanced, if it is not prepared.  [default: glyphs]")
@click.option("--device", default="cuda", show_default=True)
@click.option(
    "--accuracy",
    "train_fully",
    is_flag=True,
    help="Also train `published` and `improved` on Balanced and on ByClass, which must be prepared; takes hours.",
)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "bench" / "records",
              help="Folder of the result files.  [default: bench/records]")  # fmt: skip
def main(data_dir: str, source: str | None, device: str, train_fully: bool, out: Path) -> None:
    """Tests, benchmark and short trainings on this machine's GPU, with a JSON and a Markdown file of the results."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; rehearse on the CPU with --device cpu.")
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
        if train_fully:
            results |= {name: run(name, command, None) for name, command in accuracy(data, device).items()}
        machine = environment()
        document = {"benchmark": "gpu_check", "machine": machine, "parts": results}
        name = re.sub(r"[^a-z0-9]+", "-", (machine["gpu"] or machine["cpu"]).lower()).strip("-")
        path = out / f"check-{name}-{date.today():%Y%m%d}.json"
        write_result_file(path, document)
        write_atomic(path.with_suffix(".md"), markdown(document).encode())
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(f"{path} and {path.with_suffix('.md').name}")
    if failed := [name for name, result in results.items() if result["exit_code"]]:
        raise click.ClickException(f"{', '.join(failed)} failed; the result file has the end of the output.")


def run(name: str, command: list[str], limit: float | None = LIMIT) -> dict[str, Any]:
    """Runs a part: its exit code (124 after `limit`), seconds, the end of its output, and the document it printed."""
    click.echo(f"… {name}: {' '.join(command)}", err=True)
    started = perf_counter()
    try:
        # In one stream, so that an error is where it happened.
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, timeout=limit, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as timeout:
        code, output = 124, (timeout.stdout or b"").decode(errors="replace")
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
    """The document as Markdown."""
    machine = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    text = [
        f"# {machine['gpu'] or machine['cpu']}, {machine['time'][:10]}",
        f"{machine['cpus']} CPUs ({machine['cpu']}), Python {machine['python']}, {packages}.",
        f"`{machine['command']}`",
    ]
    for name, part in document["parts"].items():
        failure = f", failed with exit code {part['exit_code']}" if part["exit_code"] else ""
        text.append(f"## {name} ({part['seconds']:.0f} s{failure})\n\n`{part['command']}`")
        result = part["document"]
        body = throughput.table(result) if result and result["benchmark"] == "throughput" else part["output"]
        text.append(f"```\n{body}\n```")
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
