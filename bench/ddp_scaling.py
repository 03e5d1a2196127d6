#!/usr/bin/env python
"""Weak scaling of training: a constant batch per rank, on 1, 2, 4 … ranks with one torch thread each.

python bench/ddp_scaling.py --model test_efficientnet --ranks 1 --ranks 2 --ranks 4

torchrun starts the ranks on this machine, interleaved (1 2 4 1 2 4 …). A turn is the training loop with the real
pipeline; an all-reduce of as many bytes as the gradients is timed separately. Prints a table and, as the last line,
the same as a JSON document. bench/ddp_scaling.md explains the figures.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click
import torch
from torch import distributed as torch_distributed

import stage_timers
from emnist_dali import recipes
from emnist_dali.commands.options import with_flags
from emnist_dali.core import distributed
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.core.machine import available_cpus, environment
from emnist_dali.data.prepare import prepare
from emnist_dali.runtime import resolve
from emnist_dali.training.build import training_shards
from result_file import check_result_file, write_result_file

FIGURES = ("images_per_second", "step_seconds", "all_reduce_seconds", "data_wait")
_ALL_REDUCES = 20  # timed per turn


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--model", default="test_efficientnet", show_default=True)
@click.option("--image-size", type=int, default=32, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images per rank.")
@click.option("--ranks", "world_sizes", type=click.IntRange(1), multiple=True, default=(1, 2, 4), show_default=True)
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Per turn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(world_sizes: tuple[int, ...], turns: int, json_file: Path | None, **options: Any) -> None:
    """Images/s of training on several ranks of this machine's CPU."""
    try:
        if "RANK" in os.environ:
            with distributed.process_group():
                result = run_turn(**options)
                if distributed.is_main():
                    write_json(Path(os.environ["DDP_SCALING_OUT"]), result)
            return
        check_result_file(json_file, "ddp_scaling")
        prepare(options["split"], options["source"], options["data_dir"])
        document = measure(world_sizes, turns, options)
        click.echo(table(document))
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(world_sizes: tuple[int, ...], turns: int, options: dict[str, Any]) -> dict[str, Any]:
    """The document of `turns` turns on each number of ranks."""
    results: dict[int, list[dict[str, Any]]] = {world_size: [] for world_size in world_sizes}
    for _ in range(turns):
        for world_size in world_sizes:
            click.echo(f"… ranks: {world_size}", err=True)
            results[world_size].append(_start_turn(world_size, options))
    first = results[world_sizes[0]][0]
    return {
        "benchmark": "ddp_scaling",
        "machine": environment(),
        "cpus": available_cpus(),
        "data": first["data"],
        "gradient_bytes": first["gradient_bytes"],
        "options": options,
        "ranks": {
            str(world_size): {name: _summary([result[name] for result in of_turns]) for name in FIGURES}
            for world_size, of_turns in results.items()
        },
    }


def _summary(values: list[float]) -> dict[str, Any]:
    return {"median": median(values), "low": min(values), "high": max(values), "values": values}


def _start_turn(world_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Runs one turn in `world_size` new processes."""
    arguments = [
        word
        for name, value in options.items()
        if value is not None
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    with TemporaryDirectory() as folder:
        out = Path(folder, "turn.json")
        python_path = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(Path(__file__).parent)]
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DDP_SCALING_OUT": str(out),
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        }
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        done = subprocess.run([*torchrun, __file__, *arguments], env=environ, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"Training on {world_size} ranks failed:\n{done.stderr}")
        return read_json(out)


def run_turn(
    split: str, data_dir: str, source: str | None, model: str, image_size: int, batch_size: int, steps: int
) -> dict[str, Any]:
    """One turn, called by every rank; returns what this rank measured."""
    config = recipes.cpu(split).override(
        {
            "data_dir": data_dir,
            "source": source,
            "model": model,
            "pretrained": False,
            "image_size": image_size,
            "batch_size": batch_size * distributed.world_size(),
            "device": "cpu",
        }
    )
    config = resolve(config)
    shards = training_shards(config)
    with stage_timers.training_of_steps(config, shards, steps, threads=1) as training:
        trainer = training.trainer
        for epoch in (1, 2):  # the first warms up
            trainer.begin(epoch)
            entry = trainer.train_epoch(training.loader)
    gradients = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    all_reduce_seconds = 0.0
    if distributed.world_size() > 1:
        all_reduce_seconds = _mean_seconds(lambda: torch_distributed.all_reduce(gradients))
    return {
        "images_per_second": entry["images_per_second"],
        "step_seconds": entry["seconds"] / steps,
        "all_reduce_seconds": all_reduce_seconds,
        "data_wait": entry["data_wait"],
        "gradient_bytes": gradients.nbytes,
        "data": stage_timers.data_description(shards),
    }


def _mean_seconds(work: Callable[[], object]) -> float:
    work()
    started = perf_counter()
    for _ in range(_ALL_REDUCES):
        work()
    return (perf_counter() - started) / _ALL_REDUCES


def table(document: dict[str, Any]) -> str:
    """The document as text."""
    options = document["options"]
    size, batch_size = options["image_size"], options["batch_size"]
    lines = [
        f"{document['data']}: {options['model']} at {size}×{size}, {batch_size} images per rank, "
        f"{document['gradient_bytes'] / 1e6:,.2f} MB of gradients, {document['cpus']} CPUs",
        "",
        f"{'ranks':<8}{'img/s':>10}{'lowest':>10}{'highest':>10}{'efficiency':>12}{'step, s':>10}{'all-reduce':>12}",
    ]
    first = next(iter(document["ranks"]))
    rate_per_rank = document["ranks"][first]["images_per_second"]["median"] / int(first)
    for world_size, figures in document["ranks"].items():
        rate, step = figures["images_per_second"], figures["step_seconds"]["median"]
        lines.append(
            f"{world_size:<8}{rate['median']:>10,.0f}{rate['low']:>10,.0f}{rate['high']:>10,.0f}"
            f"{100 * rate['median'] / (int(world_size) * rate_per_rank):>10.0f} %{step:>10.3f}"
            f"{100 * figures['all_reduce_seconds']['median'] / step:>10.1f} %"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
