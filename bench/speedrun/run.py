#!/usr/bin/env python
"""A row of the EMNIST speed run: seconds to a mean test accuracy. The rules are in README.md.

python bench/speedrun/run.py cpu-89.75
python bench/speedrun/run.py --table

The last line of a run is a JSON document, which --json also writes to a file.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import torch
from scipy.stats import t as student

BENCH = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(BENCH))

import limits  # noqa: E402
import time_to_accuracy  # noqa: E402
from emnist_dali import recipes  # noqa: E402
from emnist_dali.commands.options import with_flags  # noqa: E402
from emnist_dali.config import Config  # noqa: E402
from emnist_dali.core.errors import UserError  # noqa: E402
from emnist_dali.core.files import read_json  # noqa: E402
from emnist_dali.runtime import AMP_DTYPES, resolve  # noqa: E402
from result_file import commit, write_result_file  # noqa: E402

RECORDS = Path(__file__).parent / "records"
# The mean of all seeds is above the target with this confidence, by Student's one-sided test.
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Row:
    """What counts as reached, on which device, and the config that holds the record."""

    target: float  # mean test accuracy
    device: str
    config: Callable[[str], Config]  # of the split


def small_net(split: str, **changes: Any) -> Config:
    """`fast` at its CPU size, with what the row changes of it."""
    return recipes.fast_cpu(split).override(changes)


ROWS = {
    "cpu-89.5": Row(target=0.895, device="cpu", config=partial(small_net, epochs=3)),
    "cpu-89.75": Row(target=0.8975, device="cpu", config=recipes.fast_cpu),
    "cpu-90.0": Row(
        target=0.9,
        device="cpu",
        # A smaller emnist_fast_tiny gave 89.99 % of validation in 7 epochs, this net 90.14 % in 6 (2 seeds).
        config=partial(small_net, model="emnist_fast_flat", batch_size=512, lr=0.03, epochs=7, momentum=0.9),
    ),
    "gpu-90.0": Row(target=0.9, device="cuda", config=recipes.fast),
    "gpu-90.5": Row(target=0.905, device="cuda", config=recipes.gpu),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("names", nargs=-1, metavar="[ROW]...", type=click.Choice([*ROWS]))
@click.option("--seeds", type=click.IntRange(2), default=10, show_default=True, help="Seeds 0, 1, 2, …")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--epochs", type=int, help="[default: the row's]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the row's document here.")
@click.option("--table", "show_table", is_flag=True, help="Print the table of the records instead.")
def main(
    names: tuple[str, ...], seeds: int, split: str, json_file: Path | None, show_table: bool, **data: Any
) -> None:
    """Runs rows of the speed run, by default those of the device that is here."""
    if show_table:
        click.echo(table(records()))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if json_file and len(names) != 1:
        raise click.UsageError("--json holds one row's document; name one ROW.")
    try:
        if json_file and json_file.exists():
            raise UserError(f"{json_file} exists; a record is not replaced: choose another --json.")
        for name in names or [name for name, row in ROWS.items() if row.device == device]:
            document = measure(name, split, seeds, data)
            click.echo(sentence(document))
            click.echo(json.dumps(document, ensure_ascii=False))
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error


def measure(name: str, split: str, seeds: int, data: dict[str, Any]) -> dict[str, Any]:
    """The document of a row; `data` are fields of the config: data_dir, source and epochs."""
    row = ROWS[name]
    config = resolve(row.config(split).override({**data, "device": row.device, "val_fraction": 0.0}))
    click.echo(f"{name}: {config.training.epochs} epochs of {config.model.model}, {seeds} seeds.")
    began, before = commit(), yardstick(config)
    document = time_to_accuracy.measure(config, row.target, seeds)
    accuracies = [run["accuracy"] for run in document["runs"]]
    lowest = lower_bound(accuracies)
    return document | {
        "benchmark": "speedrun",
        "row": name,
        "commit": began,
        "yardstick": {"before": before, "after": yardstick(config)},
        "accuracy_lower_bound": lowest,
        "reached": lowest >= row.target,
    }


def lower_bound(values: list[float]) -> float:
    """The mean is above it with CONFIDENCE."""
    n = len(values)
    return mean(values) - float(student.ppf(CONFIDENCE, n - 1)) * stdev(values) / sqrt(n)


def yardstick(config: Config) -> dict[str, float | str]:
    """What a reader on another machine compares with: matrix products in FLOP/s, copies in bytes/s."""
    dtype = AMP_DTYPES.get(config.run.amp, torch.float32)
    return asdict(limits.measure(torch.device(config.run.device), dtype, seconds=1.0))


def sentence(document: dict[str, Any]) -> str:
    accuracy, seconds = document["accuracy"], document["seconds"]
    return (
        f"{document['row']}: mean {100 * accuracy['mean']:.2f} % (sd {100 * accuracy['sd']:.2f}; with 95 % "
        f"confidence above {100 * document['accuracy_lower_bound']:.2f}) in {seconds['mean']:.1f} s "
        f"(sd {seconds['sd']:.1f}) over {len(document['runs'])} seeds: "
        f"{'reached' if document['reached'] else 'missed'}."
    )


def records() -> list[dict[str, Any]]:
    """The documents in records/, a row's oldest first, each with the `file` that it is in."""
    found = [read_json(path) | {"file": path.name} for path in RECORDS.glob("*.json")]
    return sorted(found, key=lambda record: ([*ROWS].index(record["row"]), record["machine"]["time"]))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown; a row without a record says so."""
    lines = [
        "| row | seconds | mean accuracy, % | above | seeds | warm-up, s | machine | commit | record |",
        "|---" * 9 + "|",
    ]
    for name in ROWS:
        of_row = [record for record in found if record["row"] == name]
        lines += map(_line, of_row) if of_row else [f"| {name} |" + " |" * 7 + " not run |"]
    return "\n".join(lines)


def _line(record: dict[str, Any]) -> str:
    accuracy, seconds, yardstick = record["accuracy"], record["seconds"], record["yardstick"]["before"]
    machine = record["machine"]
    where = machine["gpu"] or f"{machine['cpus']} cores, {machine['cpu']}"
    flops, bandwidth = f"{yardstick['arithmetic'] / 1e12:.2f} TFLOP/s", f"{yardstick['bandwidth'] / 1e9:.0f} GB/s"
    cells = [
        record["row"],
        f"{seconds['mean']:.1f} ± {seconds['sd']:.1f}",
        f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['sd']:.2f}",
        f"{100 * record['accuracy_lower_bound']:.2f}",
        str(len(record["runs"])),
        f"{record['warm_up_seconds']['mean']:.1f}",
        f"{where}: {flops} in {yardstick['dtype']}, {bandwidth}",
        (record["commit"] or "")[:7],
        f"[{record['file']}](records/{record['file']})",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
