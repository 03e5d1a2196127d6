#!/usr/bin/env python
"""Where the time goes on this machine: each stage of training, its limit, and the peers of the input pipeline.

python bench/throughput.py                          the prepared data, or drawn glyphs if there are none
python bench/throughput.py --image-size 112 --stage pipeline --stage peers
python bench/throughput.py --growth                 how the cost of an image grows with data set, batch and threads

Prints a table and, as the last line, the same as a JSON document. bench/README.md explains each line.
"""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch

import growth
import limits
import peer_jobs
import stage_timers
from emnist_dali.commands.options import with_flags
from emnist_dali.config import Backend, Config
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import available_cpus, environment
from emnist_dali.data.manifest import MANIFEST
from emnist_dali.data.prepare import prepare, split_folder
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.loading.loader import with_backend
from emnist_dali.recipes import choose
from emnist_dali.runtime import AMP_DTYPES, resolve
from limits import Cost, Machine
from result_file import check_result_file, write_result_file
from stage_timers import Setup, TrainingTimer
from timing import PAIRS, Rate, measure_interleaved, median_interval

STAGES = ("read", "pipeline", "mix", "model", "train", "peers")
PEER_SIZES = (28, 112)  # the images' own side, and the mission's


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", type=click.Choice(["glyphs"]), help="Drawn glyphs even if the split is prepared.")
@click.option("--stage", "stages", type=click.Choice(STAGES), multiple=True, help="Only this stage; repeatable.")
@click.option("--image-size", type=int, help="[default: that of the recipe for this machine, and at least 28]")
@click.option("--batch-size", type=int, help="[default: the recipe's]")
@click.option("--model", help="[default: the recipe's]")
@click.option("--backend", type=click.Choice(get_args(Backend)), help="Input pipeline.  [default: auto]")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--threads", type=click.IntRange(1), help="Of torch, the pipeline and the peers.  [default: all cores]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Per repetition; there are 15 of model and train, and 5 of the others.")  # fmt: skip
@click.option("--growth", "measure_growth", is_flag=True,
              help="Instead, cost by data set (up to 10⁷ records), batch and threads.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Write a bar chart (PNG).")
def main(
    split: str, data_dir: str, source: str | None, stages: tuple[str, ...], threads: int | None, seconds: float,
    measure_growth: bool, json_file: Path | None, plot_file: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Images/s of every stage of training, beside the machine's limits and the peers."""
    benchmark = "growth" if measure_growth else "throughput"
    try:
        check_result_file(json_file, benchmark)
        setup = load(split, data_dir, source, threads, seconds, options)
        document = {"benchmark": benchmark, **describe(setup)}
        if measure_growth:
            document |= growth.measure(setup)
            click.echo(growth.table(document))
        else:
            sizes = (options["image_size"],) if options["image_size"] else PEER_SIZES
            document |= measure(setup, stages or STAGES, sizes)
            click.echo(table(document))
            if plot_file:
                import plot

                plot.draw(document, plot_file)
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(json.dumps(document, ensure_ascii=False))


def load(
    split: str, data_dir: str, source: str | None, threads: int | None, seconds: float, options: dict[str, Any]
) -> Setup:
    """`improved` with a GPU, `cpu` without, with the config's fields in `options`, on the split or drawn glyphs."""
    device = options["device"] or "auto"
    on_gpu = torch.cuda.is_available() and not device.startswith("cpu")
    recipe, _ = choose("improved" if on_gpu else "cpu", split, on_gpu)
    size = max(recipe.data.image_size, 28)
    requested = recipe.override({"pretrained": False, "image_size": size}).override(options)
    if threads:
        torch.set_num_threads(threads)
    if not source and not (split_folder(data_dir, split, None) / MANIFEST).exists():
        source = "glyphs"
    folder = prepare(split, source, data_dir)
    shards = Shards(folder, "train")
    return Setup(
        config=with_backend(resolve(requested), shards),
        shards=shards,
        stats=statistics(folder, requested.data.image_size),
        batch_size=requested.data.batch_size,
        threads=threads or available_cpus(),
        seconds=seconds,
    )


def describe(setup: Setup) -> dict[str, Any]:
    """The document's machine, data and settings."""
    return {
        "machine": environment(setup.config.run.device),
        "data": stage_timers.data_description(setup.shards),
        "images": len(setup.shards),
        "batch_size": setup.batch_size,
        "threads": setup.threads,
        "seconds": setup.seconds,
        "config": setup.config.to_dict(),
    }


def measure(setup: Setup, stages: tuple[str, ...], sizes: tuple[int, ...] = PEER_SIZES) -> dict[str, Any]:
    """The document's limits, stages, ratios, and peers at `sizes`."""
    config = setup.config
    training = None
    if {"model", "train"} & {*stages}:
        _progress("compiling and warming up the training step")
        training = TrainingTimer(setup)
    machine = limits.measure(setup.device, AMP_DTYPES.get(config.run.amp, torch.float32), setup.seconds)
    timers: dict[str, tuple[Callable[[], float], Cost]] = {
        "read": (lambda: stage_timers.read(setup), stage_timers.read_cost(setup)),
        "pipeline": (
            lambda: stage_timers.pipeline(setup, setup.loader(affine=config.data.affine)),
            stage_timers.pipeline_cost(setup),
        ),
        "mix": (lambda: stage_timers.mix(setup), stage_timers.mix_cost(setup)),
    }
    rates, costs = {}, {}
    for name in (name for name in timers if name in stages):
        _progress(name)
        timer, costs[name] = timers[name]
        rates |= measure_interleaved({name: timer})
    document: dict[str, Any] = {"limits": asdict(machine)}
    if training:
        _progress("model and train, interleaved")
        both = {"model": training.model, "train": training.train}
        rates |= measure_interleaved({name: both[name] for name in both if name in stages}, PAIRS)
        costs |= dict.fromkeys(both, limits.training_cost(training.trainer))
        training.close()
        document["compile_seconds"] = training.compile_seconds
    document["stages"] = {name: _stage(rates[name], costs[name], machine) for name in rates}
    document["ratios"] = _ratios(rates, training.waits if training else [])
    document["peers"] = {}
    if "peers" in stages:
        training = _fast(setup) if "train" in stages else None
        document["peers"] = peer_jobs.measure(setup, sizes, training)
    return document


def _fast(setup: Setup) -> Config:
    """The training that peers are the loaders of."""
    config, _ = choose("fast", setup.shards.manifest.split, gpu=setup.device.type == "cuda")
    return resolve(config.override({"device": setup.config.run.device, "backend": setup.config.data.backend}))


def _stage(rate: Rate, cost: Cost, machine: Machine) -> dict[str, Any]:
    limit, by = cost.limit(machine)
    return {**rate.to_dict(), "limit": limit, "limited_by": by, "share": rate.median / limit, "cost": asdict(cost)}


def _ratios(rates: dict[str, Rate], waits: list[float]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    if "train" in rates:
        ratios["data_wait"] = float(np.median(waits))
    if {"model", "train"} <= rates.keys():
        pairs = tuple(t / m for t, m in zip(rates["train"].values, rates["model"].values, strict=True))
        ratios |= {
            "bound_share": float(np.median(pairs)),
            "bound_share_95": list(median_interval(pairs)),
            "pairs": list(pairs),
        }
    if {"pipeline", "train"} <= rates.keys():
        ratios["pipeline_to_train"] = rates["pipeline"].median / rates["train"].median
    return ratios


def table(document: dict[str, Any]) -> str:
    """The document of `measure` as text."""
    config, bounds = document["config"], document["limits"]
    size = config["data"]["image_size"]
    lines = [
        f"{document['data']}: {config['model']['model']} at {size}×{size}, batch {document['batch_size']} "
        f"(training: {config['data']['batch_size']}), {document['threads']} threads, {config['run']['device']}, "
        f"{config['data']['backend']}",
        f"copy {bounds['bandwidth'] / 1e9:,.1f} GB/s; "
        f"matrix products in {bounds['dtype']} {bounds['arithmetic'] / 1e12:,.2f} TFLOP/s",
        "",
        f"{'stage':<34}{'img/s':>12}{'lowest':>12}{'highest':>12}{'limit':>14}{'share':>8}",
    ]
    for name, stage in document["stages"].items():
        lines.append(
            f"{name:<34}{_rates(stage)}{stage['limit']:>14,.0f}{100 * stage['share']:>6.1f} %"
            f"  ({stage['limited_by']})"
        )
    ratios = document["ratios"]
    if "bound_share" in ratios:
        low, high = ratios["bound_share_95"]
        lines.append(
            f"\ntrain / model: {100 * ratios['bound_share']:.1f} % (median of {PAIRS} pairs; 95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f} %)"
        )
    if "data_wait" in ratios:
        lines.append(f"data wait: {100 * ratios['data_wait']:.2f} % of the training time")
    if "pipeline_to_train" in ratios:
        lines.append(f"the pipeline is {ratios['pipeline_to_train']:,.0f} times as fast as training")
    if document["peers"]:
        lines += ["", peer_jobs.table(document["peers"])]
    return "\n".join(lines)


def _rates(entry: dict[str, Any]) -> str:
    return f"{entry['images_per_second']:>12,.0f}{entry['low']:>12,.0f}{entry['high']:>12,.0f}"


def _progress(text: str) -> None:
    click.echo(f"… {text}", err=True)


if __name__ == "__main__":
    # As Ctrl-C does, it ends the peers, which stand still and would stay.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
