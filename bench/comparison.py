"""Configs compared over the same seeds: trained on the train split, the test split read once a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

import stage_timers
import time_to_accuracy
from ablation import half_interval
from emnist_dali.config import Config, from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json
from emnist_dali.core.machine import environment
from emnist_dali.training.build import training_shards
from result_file import check_result_file, commit, write_result_file


def measure(
    benchmark: str, configs: Mapping[str, Config], seeds: int, json_file: Path | None = None
) -> dict[str, Any]:
    """The document of resolved `configs` by name, with seeds from 0.

    `json_file` is written after each run, and runs that it holds are not repeated. Raises UserError if they are of
    other data or other configs.
    """
    shards = training_shards(next(iter(configs.values())))
    machine = environment("cpu")
    document = {
        "benchmark": benchmark,
        "machine": machine,
        "data": stage_timers.data_description(shards),
        "fingerprint": shards.manifest.fingerprint,
        "configs": {name: config.to_dict() for name, config in configs.items()},
        "runs": [],
    }
    check_result_file(json_file, benchmark)
    if json_file and json_file.exists():
        found = read_json(json_file)
        theirs = {
            name: from_dict(config, str(json_file)).identity() for name, config in found.get("configs", {}).items()
        }
        ours = {name: config.identity() for name, config in configs.items()}
        if (found["fingerprint"], theirs) != (document["fingerprint"], ours):
            raise UserError(f"{json_file} is of other data or other configs; choose another --json.")
        document = found
    done = {(run["name"], run["seed"]) for run in document["runs"]}
    for seed in range(seeds):  # the table is complete after each seed
        for name, config in configs.items():
            if (name, seed) not in done:
                click.echo(f"{name}:")
                began = commit()
                result = time_to_accuracy.run(config.override({"seed": seed}), shards)
                document["runs"].append({"name": name, **result, "commit": began, "cpu": machine["cpu"]})
                if json_file:
                    write_result_file(json_file, document)
    return document


def table(document: dict[str, Any], metrics: Sequence[str]) -> str:
    """Markdown: mean ± standard deviation over the seeds, in %, F1 scores as they are; and for each metric the
    difference to the first config at equal seeds, ± half of Student's 95 % interval."""
    headings = [text for metric in metrics for text in (_heading(metric), "difference")]
    lines = [f"| | seeds | {' | '.join(headings)} |", "|---" * (2 + len(headings)) + "|"]
    by_seed = {
        name: {run["seed"]: run for run in document["runs"] if run["name"] == name} for name in document["configs"]
    }
    first = next(iter(by_seed.values()))
    for name, runs in by_seed.items():
        cells = [name, str(len(runs))]
        for metric in metrics:
            scale, digits = (1, 4) if metric.endswith("f1") else (100, 2)
            values = [scale * run[metric] for run in runs.values()]
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.{digits}f}{spread}")
            pairs = [scale * (runs[seed][metric] - first[seed][metric]) for seed in runs.keys() & first.keys()]
            half = half_interval(pairs)
            interval = "" if half is None else f" ± {half:.{digits}f}"
            cells.append("" if runs is first else f"{mean(pairs):+.{digits}f}{interval}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _heading(metric: str) -> str:
    name = metric.replace("_", " ").replace("f1", "F1")
    return name if metric.endswith("f1") else f"{name}, %"
