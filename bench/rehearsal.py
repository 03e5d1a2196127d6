#!/usr/bin/env python
"""What each recipe would ask of a GPU, on an H100 that computes nothing (tests/rehearsal/): no GPU is needed.

python bench/rehearsal.py --json bench/records/rehearsal-cpu-2-cores.json

Takes a quarter of an hour on 2 cores the first time, because Inductor and Triton compile EfficientNet; what they
compiled is kept in build/rehearsal. Writes bench/rehearsal.md and prints, as the last line, a JSON document.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, get_args

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests/

from emnist_dali.config import Optimizer  # noqa: E402
from emnist_dali.core.errors import UserError  # noqa: E402
from emnist_dali.core.files import write_atomic  # noqa: E402
from emnist_dali.core.machine import environment  # noqa: E402
from emnist_dali.recipes import RECIPES  # noqa: E402
from result_file import check_result_file, write_result_file  # noqa: E402
from tests.rehearsal import null_gpu  # noqa: E402

PAGE = ROOT / "bench" / "rehearsal.md"
# Dense bf16 operations and bytes per second: half of the 1,979 teraFLOPS «with sparsity», and the bandwidth, that
# https://www.nvidia.com/en-us/data-center/h100/ and …/h200/ give for the SXM modules.
GPUS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
OPTIMIZERS = get_args(Optimizer)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(json_file: Path | None) -> None:
    """What each recipe would ask of a GPU: kernels, copies, memory, operations, and the bounds on images/s."""
    try:
        check_result_file(json_file, "rehearsal")
        if lacking := null_gpu.missing():
            raise UserError(f"The rehearsal cannot be built: {lacking}.")
        rows = list(rehearse(ROOT / "build" / "rehearsal"))
        document = {"benchmark": "rehearsal", "machine": environment(), "rows": rows}
        write_atomic(PAGE, page(document).encode())
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(document, ensure_ascii=False))


def rehearse(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for every case, each with `flops`, `bytes` and `bounds`."""
    eager: dict[tuple[str, str, str], dict[str, Any]] = {}
    for cases in groups():
        click.echo(f"… {cases[0]['name']}, {cases[0]['settings']['compile']}", err=True)
        with NamedTemporaryFile(suffix=".json") as out:
            null_gpu.run("tests.rehearsal.rehearse", json.dumps(cases), out.name, folder=folder)
            rows = json.loads(Path(out.name).read_text())
        for row in rows:
            # A captured or compiled step does the eager one's operations, which come first; Inductor counts bytes.
            first = eager.setdefault((row["recipe"], row["split"], row["optimizer"]), row)
            row = {"flops": first["flops"], "bytes": first["bytes"], **row}
            del row["names"]
            yield {**row, "bounds": {gpu: bound(row, gpu) for gpu in GPUS}}


def groups() -> Iterator[list[dict[str, Any]]]:
    """The cases of each process: uncompiled ones first."""

    def case(name: str, compile: str, split: str = "balanced", **settings: Any) -> dict[str, Any]:
        settings = {"compile": compile, **settings}
        return {"name": name, "split": split, "settings": settings, "count_work": compile != "graph"}

    for name in RECIPES:
        yield [case(name, "off", optimizer=optimizer) for optimizer in OPTIMIZERS]
    yield [case(name, "off", "byclass") for name in ("published", "improved")]
    for name in ("fast", "gpu", "cpu"):  # a graph holds one micro-batch
        yield [case(name, "graph", optimizer=optimizer) for optimizer in OPTIMIZERS]
    for name in ("fast", "cpu", "published"):  # `improved` compiles the same network
        yield [case(name, "on")]


def bound(row: dict[str, Any], gpu: str) -> float:
    """Images per second that neither the arithmetic nor the memory of `gpu` can exceed."""
    operations, bandwidth = GPUS[gpu]
    images = row["batch_size"] * row["accumulation"]
    return images / max(row["flops"] / operations, row["bytes"] / bandwidth)


def page(document: dict[str, Any]) -> str:
    """bench/rehearsal.md."""
    machine = document["machine"]
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "timm"))
    lines = [
        *HEAD.format(command=machine["command"], cpus=machine["cpus"], cpu=machine["cpu"], packages=packages).split(
            "\n"
        ),
        "| recipe | optimizer | compile | kernels a step | copies, reads | breaks, recompiles | peak, GiB "
        "| GFLOP an image | MB an image | H100, img/s | H200, img/s | host, ms a step |",
        "|" + "---|" * 12,
        *map(_line, document["rows"]),
        "",
        "| recipe, optimizer, compile | kernels, by phase of the step |",
        "|---|---|",
    ]
    for row in document["rows"]:
        phases = ", ".join(f"{name} {count}" for name, count in row["phases"].items())
        graph = f"in the graph {row['captured']}; beside it {row['kernels']}"
        lines.append(
            f"| {_name(row)}, {row['optimizer']}, {row['compile']} | {graph if row['captured'] else phases} |"
        )
    return "\n".join(lines) + "\n"


HEAD = """# The GPU, rehearsed

Written by `python {command}`
on {cpus} CPUs ({cpu}), {packages}.
**No GPU was used: nothing here was run on one.** The real trainer ran on an H100 that computes nothing
([tests/rehearsal/](../tests/rehearsal/)), through PyTorch's own allocator, kernels and compiler.

- **kernels a step**: all that the device is told to start in one optimizer step, copies on the device and settings of
  memory included; with `graph`, those captured + those beside the graph. Convolutions and matrix products count one a
  result: cuDNN and cuBLAS may start more.
- **copies, reads**: between host and device, and waits of the host, in a step between two logging steps.
- **breaks, recompiles**: of compiled graphs, over two epochs with evaluation and checkpoint.
- **peak**: of the memory that PyTorch gave out, without the workspaces of cuDNN and cuBLAS.
- **GFLOP, MB an image**: of the whole step, by image. Bytes are those of the tensors that operations read and write,
  each from memory, without caches: with `off` and `graph` once an operation, without fusion; with `on` of forward and
  backward, as Inductor fused them, and twice where a kernel reads twice.
- **H100, H200**: images per second that neither the arithmetic (989 TFLOP/s, dense bf16) nor the memory (3.35 and
  4.8 TB/s) of the SXM modules allows to exceed, by NVIDIA's data sheets for the
  [H100](https://www.nvidia.com/en-us/data-center/h100/) and the [H200](https://www.nvidia.com/en-us/data-center/h200/).
  **Computed, not run**: bounds, not forecasts.
- **host**: what a step cost one core of this machine; the GPU takes no time.
"""


def _name(row: dict[str, Any]) -> str:
    split = "" if row["split"] == "balanced" else f", {row['split']}"
    return f"{row['recipe']}{split}"


def _line(row: dict[str, Any]) -> str:
    images = row["batch_size"] * row["accumulation"]
    fields = (
        _name(row),
        row["optimizer"],
        row["compile"],
        f"{row['captured']:,} + {row['kernels']}" if row["captured"] else f"{row['kernels']:,}",
        f"{len(row['copies'])}, {len(row['waits'])}",
        f"{row['breaks']}, {row['recompiled']}",
        f"{row['peak'] / 2**30:.2f}",
        f"{row['flops'] / images / 1e9:.2f}",
        f"{row['bytes'] / images / 1e6:.2f}",
        *(f"{rate:,.0f}" for rate in row["bounds"].values()),
        f"{row['host_seconds'] * 1000:.1f}",
    )
    return f"| {' | '.join(fields)} |"


if __name__ == "__main__":
    main()
