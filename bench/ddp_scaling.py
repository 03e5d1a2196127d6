#!/usr/bin/env python
"""Weak scaling of training: a constant batch a rank, on 1, 2, 4 … ranks with one torch thread each.

python bench/scaling.py --model test_efficientnet --ranks 1 --ranks 2 --ranks 4

The ranks are started by torchrun on this machine, in turns (1 2 4 1 2 4 …). Each turn is the trainer's own loop with
the real pipeline, and beside it the gradients' bytes are all-reduced alone. A table, and as the last line the same as
one JSON document. bench/scaling.md says what it means.
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
import numpy as np
import torch
from torch import distributed as torch_distributed

import stage_timers
from emnist_dali import recipes
from emnist_dali.core import distributed
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.core.machine import available_cpus, environment
from emnist_dali.data.prepare import prepare, split_folder
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.runtime import resolve
from emnist_dali.training.trainer import Trainer, training_loader, tune_device
from record import check_record, write_record

FIGURES = ("images_per_second", "step_seconds", "all_reduce_seconds", "data_wait")
# All-reduces of the gradients in a turn.
_SENT = 20


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As of emnist-dali prepare.")
@click.option("--model", default="test_efficientnet", show_default=True)
@click.option("--image-size", type=int, default=32, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images a rank.")
@click.option("--ranks", "worlds", type=click.IntRange(1), multiple=True, default=(1, 2, 4), show_default=True)
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Of a turn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the JSON document here too.")
def main(worlds: tuple[int, ...], turns: int, json_file: Path | None, **options: Any) -> None:
    """Images a second of training on several ranks of this machine's CPU."""
    try:
        if "RANK" in os.environ:
            with distributed.process_group():
                found = turn(**options)
                if distributed.is_main():
                    write_json(Path(os.environ["SCALING_OUT"]), found)
            return
        check_record(json_file, "scaling")
        folder = prepare(options["split"], options["source"], options["data_dir"])
        statistics(folder, options["image_size"])
        document = measure(worlds, turns, options)
        click.echo(table(document))
        if json_file:
            write_record(json_file, document)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(worlds: tuple[int, ...], turns: int, options: dict[str, Any]) -> dict[str, Any]:
    found: dict[int, list[dict[str, Any]]] = {world: [] for world in worlds}
    for _ in range(turns):
        for world in worlds:
            click.echo(f"… {world} ranks", err=True)
            found[world].append(_start(world, options))
    about = found[worlds[0]][0]
    return {
        "benchmark": "scaling",
        "machine": environment(),
        "cpus": available_cpus(),
        "data": about["data"],
        "gradient_bytes": about["gradient_bytes"],
        "options": options,
        "ranks": {
            str(world): {name: _summary([one[name] for one in found[world]]) for name in FIGURES} for world in worlds
        },
    }


def _summary(values: list[float]) -> dict[str, Any]:
    return {"median": median(values), "low": min(values), "high": max(values), "values": values}


def _start(world: int, options: dict[str, Any]) -> dict[str, Any]:
    """One turn on `world` ranks, in processes of their own."""
    words = [word for name, value in options.items() if value is not None
             for word in ("--" + name.replace("_", "-"), str(value))]  # fmt: skip
    with TemporaryDirectory() as folder:
        out = Path(folder, "turn.json")
        path = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(Path(__file__).parent)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "SCALING_OUT": str(out)}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        done = subprocess.run([*torchrun, __file__, *words], env=environ, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{world} ranks failed:\n{done.stderr}")
        return read_json(out)


def turn(
    split: str, data_dir: str, source: str | None, model: str, image_size: int, batch_size: int, steps: int
) -> dict[str, Any]:
    """What one rank sees of a turn; all ranks take part, in equal steps."""
    given = {"split": split, "data_dir": data_dir, "source": source, "model": model, "pretrained": False}
    given |= {"image_size": image_size, "batch_size": batch_size * distributed.world_size(), "device": "cpu"}
    config = resolve(recipes.cpu(split).override({**given, "lr": 1e-6}))  # nothing diverges
    tune_device(config)
    shards = Shards(split_folder(data_dir, split, source), "train")
    stats = statistics(shards.folder, image_size)
    images = steps * config.training.accumulation * config.data.batch_size
    members = np.resize(np.arange(len(shards)), images)
    loader = training_loader(config, shards, stats, members, threads=1)
    counts = [max(count, 1) for count in shards.manifest.counts["train"]]
    trainer = Trainer(config, loader, shards.manifest.classes, counts)
    with loader:
        for epoch in (1, 2):  # the first warms up
            trainer.begin(epoch)
            record = trainer.train_epoch()
    gradients = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    sent = _seconds(lambda: distributed.world_size() > 1 and torch_distributed.all_reduce(gradients))
    return {
        "images_per_second": record["images_per_second"],
        "step_seconds": record["seconds"] / steps,
        "all_reduce_seconds": sent,
        "data_wait": record["data_wait"],
        "gradient_bytes": gradients.nbytes,
        "data": stage_timers.data(shards),
    }


def _seconds(work: Callable[[], object]) -> float:
    work()
    started = perf_counter()
    for _ in range(_SENT):
        work()
    return (perf_counter() - started) / _SENT


def table(document: dict[str, Any]) -> str:
    options = document["options"]
    size, batch = options["image_size"], options["batch_size"]
    lines = [
        f"{document['data']}: {options['model']} at {size}×{size}, {batch} images a rank, "
        f"{document['gradient_bytes'] / 1e6:,.2f} MB of gradients, {document['cpus']} CPUs",
        "",
        f"{'ranks':<8}{'img/s':>10}{'lowest':>10}{'highest':>10}{'efficiency':>12}{'step, s':>10}{'all-reduce':>12}",
    ]
    first = next(iter(document["ranks"]))
    one = document["ranks"][first]["images_per_second"]["median"] / int(first)
    for world, found in document["ranks"].items():
        rate, step = found["images_per_second"], found["step_seconds"]["median"]
        lines.append(
            f"{world:<8}{rate['median']:>10,.0f}{rate['low']:>10,.0f}{rate['high']:>10,.0f}"
            f"{100 * rate['median'] / (int(world) * one):>10.0f} %{step:>10.3f}"
            f"{100 * found['all_reduce_seconds']['median'] / step:>10.1f} %"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
