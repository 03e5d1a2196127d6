#!/usr/bin/env python
"""Where the time goes on this machine: each stage of training, its limit, and the peers of the input pipeline.

python bench/throughput.py                          the data that are prepared, else drawn glyphs
python bench/throughput.py --image-size 112 --stage pipeline --stage peers
python bench/throughput.py --scale                  how the cost of an image grows with data set, batch and threads

A table, and as the last line the same as one JSON document. bench/README.md says what each line means.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch

import growth
import limits
import peers
import stage_timers
from emnist_dali.config import Backend
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import available_cpus, environment
from emnist_dali.data.manifest import MANIFEST
from emnist_dali.data.prepare import prepare, split_folder
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.recipes import choose
from emnist_dali.runtime import AMP_DTYPES, half_images, resolve
from emnist_dali.training.trainer import tune_device
from limits import Cost, Machine
from record import check_record, write_record
from stage_timers import Setup
from timing import PAIRS, Rate, measure_interleaved, median_interval, rate

STAGES = ("read", "pipeline", "mix", "model", "train", "peers")
OURS = "emnist-dali, {backend}"
# Peers hold their images in memory.
PEER_IMAGES = 1 << 17
# Seconds; two DataLoader workers fill their queues of 512 images at 112×112 in 0.15.
SETTLE = 0.3
# A peer whose images are not these within a grey level does other work. Half a level more for float16.
TOLERANCE = {False: 1.0, True: 1.5}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", type=click.Choice(["glyphs"]), help="Drawn glyphs even where the split is prepared.")
@click.option("--stage", "asked", type=click.Choice(STAGES), multiple=True, help="Only this; can be repeated.")
@click.option("--image-size", type=int, help="[default: the recipe's that fits the machine]")
@click.option("--batch-size", type=int, help="[default: the recipe's]")
@click.option("--model", help="[default: the recipe's]")
@click.option("--backend", type=click.Choice(get_args(Backend)), help="Input pipeline.  [default: auto]")
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--threads", type=click.IntRange(1), help="Of torch, the pipeline and the peers.  [default: all cores]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="A repetition; there are 5, and 15 of model and train.")  # fmt: skip
@click.option("--scale", "scaling", is_flag=True, help="Instead: cost by data set (to 10⁷ records), batch, threads.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the JSON document here too.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Write a bar chart, PNG.")
def main(
    split: str, data_dir: str, source: str | None, asked: tuple[str, ...], threads: int | None, seconds: float,
    scaling: bool, json_file: Path | None, plot_file: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Images a second of every stage of training, beside the machine's limits and the peers."""
    try:
        check_record(json_file, "scale" if scaling else "throughput")
        setup = load(split, data_dir, source, threads, seconds, options)
        if scaling:
            document = {"benchmark": "scale", **_about(setup), **growth.measure(setup)}
            click.echo(growth.table(document))
        else:
            document = {"benchmark": "throughput", **_about(setup), **measure(setup, asked or STAGES)}
            click.echo(table(document))
            if plot_file:
                import plot

                plot.draw(document, plot_file)
        if json_file:
            write_record(json_file, document)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(document, ensure_ascii=False))


def load(
    split: str, data_dir: str, source: str | None, threads: int | None, seconds: float, options: dict[str, Any]
) -> Setup:
    """What fits the machine, with `options` of the config in its place; the prepared split, or drawn glyphs."""
    device = options["device"] or "auto"
    asked, _ = choose("auto", split, gpu=torch.cuda.is_available() and not device.startswith("cpu"))
    asked = asked.override({"pretrained": False, **options})
    config = resolve(asked)
    tune_device(config)
    if threads:
        torch.set_num_threads(threads)  # of the peers that are torch, and of training
    if not source and not (split_folder(data_dir, split, None) / MANIFEST).exists():
        source = "glyphs"
    folder = prepare(split, source, data_dir)
    return Setup(
        config=config,
        shards=Shards(folder, "train"),
        stats=statistics(folder, config.data.image_size),
        batch_size=asked.data.batch_size,
        threads=threads or available_cpus(),
        seconds=seconds,
    )


def _about(setup: Setup) -> dict[str, Any]:
    return {
        "machine": environment(),
        "data": stage_timers.data(setup.shards),
        "images": len(setup.shards),
        "batch_size": setup.batch_size,
        "threads": setup.threads,
        "seconds": setup.seconds,
        "config": setup.config.to_dict(),
    }


def measure(setup: Setup, asked: tuple[str, ...]) -> dict[str, Any]:
    """The document's limits, stages, ratios and peers, as far as `asked`."""
    config, shards, device = setup.config, setup.shards, setup.device
    size, classes = config.data.image_size, len(shards.manifest.classes)
    # Training first: the threads of some peers live as long as the process.
    training = None
    if {"model", "train"} & {*asked}:
        _note("compiling and warming up the training step")
        training = stage_timers.Training(config, shards, setup.stats, setup.threads, setup.seconds)
    machine = limits.measure(device, AMP_DTYPES.get(config.run.amp, torch.float32), setup.seconds)
    alone: dict[str, tuple[Callable[[], float], Cost]] = {
        "read": (
            lambda: stage_timers.read(shards, setup.batch_size, setup.threads, setup.seconds),
            stage_timers.read_cost(shards),
        ),
        "pipeline": (
            lambda: stage_timers.pipeline(setup.loader(affine=config.data.affine), setup.seconds),
            stage_timers.pipeline_cost(shards, size, half_images(config)),
        ),
        "mix": (
            lambda: stage_timers.mix(config, setup.batch_size, classes, setup.seconds),
            stage_timers.mix_cost(config, classes),
        ),
    }
    rates, costs = {}, {}
    for name in (name for name in alone if name in asked):
        _note(name)
        work, costs[name] = alone[name]
        rates |= measure_interleaved({name: work})
    document: dict[str, Any] = {"limits": asdict(machine)}
    if training:
        _note("model and train, turn about")
        both = {"model": training.model, "train": training.train}
        rates |= measure_interleaved({name: both[name] for name in both if name in asked}, PAIRS)
        costs |= dict.fromkeys(both, limits.training_cost(training.trainer))
        training.close()
        document["compile_seconds"] = training.compile_seconds
    document["stages"] = {name: _stage(rates[name], costs[name], machine) for name in rates}
    document["peers"] = _peers(setup) if "peers" in asked else {}
    document["ratios"] = _ratios(rates, training.waits if training else [], document["peers"], setup)
    return document


def _stage(rate: Rate, cost: Cost, machine: Machine) -> dict[str, Any]:
    limit, by = cost.limit(machine)
    return {**rate.to_dict(), "limit": limit, "limited_by": by, "share": rate.median / limit, "cost": asdict(cost)}


class _Ours:
    """This project's loader as one of the peers: no augmentation, labels are places."""

    def __init__(self, setup: Setup, samples: int) -> None:
        self._setup = setup
        self._loader = setup.loader(members=np.arange(samples))
        self._stream = stage_timers.forever(self._loader)
        self._batches = 0

    def batch(self) -> peers.Batch:
        indices = self._loader.plan.batch(self._batches).indices
        self._batches += 1
        return next(self._stream).images, torch.from_numpy(indices)

    def rate(self, seconds: float) -> float:
        for _ in range(stage_timers.ahead(self._loader)):
            next(self._stream)
        return rate(lambda: len(next(self._stream).labels), seconds, self._setup.device)

    def close(self) -> None:
        self._loader.close()


def _peers(setup: Setup) -> dict[str, dict[str, Any]]:
    """Every peer by name: its rate and how far its images are from the reference, or why there is none."""
    if importlib.util.find_spec("cv2") is None:
        raise UserError("Peers are checked against OpenCV: pip install -e '.[peers]', or name other --stages.")
    samples = min(len(setup.shards), PEER_IMAGES)
    if setup.batch_size > samples:
        raise UserError(f"There are {samples} images for the peers; lower --batch-size of {setup.batch_size}.")
    half = half_images(setup.config)
    ours = OURS.format(backend=setup.config.data.backend)
    results: dict[str, dict[str, Any]] = {}
    running: dict[str, peers.Peer] = {}
    with tempfile.TemporaryDirectory(prefix="emnist-dali-bench-") as folder:
        work = peers.Work(
            images=setup.shards.images(np.arange(samples)),
            size=setup.config.data.image_size,
            mean=setup.stats.mean,
            std=setup.stats.std,
            batch_size=setup.batch_size,
            device=setup.device,
            half=half,
            threads=setup.threads,
            folder=Path(folder),
        )
        try:
            for name, make in {ours: lambda _: _Ours(setup, samples), **peers.PEERS}.items():
                _note(f"setting up: {name}")
                try:
                    peer = make(work)
                except (peers.Missing, RuntimeError) as reason:
                    results[name] = {"missing": str(reason).splitlines()[-1]}
                    continue
                running[name] = peer
                off = peers.check(peer.batch(), work)
                results[name] = {"off_by_levels": off}
                if not off <= TOLERANCE[half]:
                    results[name]["wrong"] = f"off by {off:.2f} grey levels: not timed"
                    running.pop(name).close()
            _note("peers, turn about")
            measured = measure_interleaved(
                {name: (lambda peer=peer: peer.rate(setup.seconds)) for name, peer in running.items()},
                settle=SETTLE,
            )
        finally:
            for peer in running.values():
                peer.close()
    for name, found in measured.items():
        results[name] |= found.to_dict()
    return results


def _ratios(rates: dict[str, Rate], waits: list[float], peer_results: dict, setup: Setup) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    if "train" in rates:
        ratios["data_wait"] = float(np.median(waits))
    if {"model", "train"} <= rates.keys():
        pairs = tuple(t / m for t, m in zip(rates["train"].values, rates["model"].values, strict=True))
        low, high = median_interval(pairs)
        ratios |= {"bound_share": float(np.median(pairs)), "bound_share_95": [low, high], "pairs": list(pairs)}
    if {"pipeline", "train"} <= rates.keys():
        ratios["pipeline_to_train"] = rates["pipeline"].median / rates["train"].median
    timed = {name: peer["images_per_second"] for name, peer in peer_results.items() if "images_per_second" in peer}
    ours = timed.pop(OURS.format(backend=setup.config.data.backend), None)
    if ours:
        ratios["to_peers"] = {name: ours / rate for name, rate in timed.items()}
        loaders = [rate for name, rate in timed.items() if name.startswith("DataLoader")]
        if loaders:
            ratios["to_best_dataloader"] = ours / max(loaders)
    return ratios


def table(document: dict[str, Any]) -> str:
    """For people: what `measure` found."""
    data, found = document["config"]["data"], document["limits"]
    lines = [
        f"{document['data']}: {document['config']['model']['model']} at {data['image_size']}×{data['image_size']}, "
        f"batch {document['batch_size']} (training: {data['batch_size']}), {document['threads']} threads, "
        f"{document['config']['run']['device']}, {data['backend']}",
        f"copy {found['bandwidth'] / 1e9:,.1f} GB/s; "
        f"products of {found['dtype']} {found['arithmetic'] / 1e12:,.2f} TFLOP/s",
        "",
        f"{'stage':<34}{'img/s':>12}{'lowest':>12}{'highest':>12}{'limit':>14}{'share':>8}",
    ]
    for name, stage in document["stages"].items():
        lines.append(
            f"{name:<34}{_rates(stage)}{stage['limit']:>14,.0f}{100 * stage['share']:>6.1f} %"
            f"  by {stage['limited_by']}"
        )
    ratios = document["ratios"]
    if "bound_share" in ratios:
        low, high = ratios["bound_share_95"]
        lines.append(
            f"\ntrain / model: {100 * ratios['bound_share']:.1f} % (median of {PAIRS} pairs; 95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f} %)"
        )
    if "data_wait" in ratios:
        lines.append(f"waiting for data: {100 * ratios['data_wait']:.2f} % of the time")
    if "pipeline_to_train" in ratios:
        lines.append(f"the pipeline is {ratios['pipeline_to_train']:,.0f} times as fast as training consumes")
    if document["peers"]:
        lines.append(
            f"\n{'batches without augmentation':<34}{'img/s':>12}{'lowest':>12}{'highest':>12}{'ours is':>14}"
        )
    for name, peer in document["peers"].items():
        if "images_per_second" in peer:
            times = ratios.get("to_peers", {}).get(name)
            lines.append(f"{name:<34}{_rates(peer)}" + (f"{times:>12,.2f} ×" if times else ""))
        else:
            lines.append(f"{name:<34}{'missing: ' + peer['missing'] if 'missing' in peer else peer['wrong']}")
    return "\n".join(lines)


def _rates(entry: dict[str, Any]) -> str:
    return f"{entry['images_per_second']:>12,.0f}{entry['low']:>12,.0f}{entry['high']:>12,.0f}"


def _note(text: str) -> None:
    click.echo(f"… {text}", err=True)


if __name__ == "__main__":
    sys.exit(main())
