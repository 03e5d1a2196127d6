#!/usr/bin/env python
"""The pipeline's settings against each other: why the defaults are what they are.

python bench/variants.py                 on this machine's device; the table of bench/README.md
python bench/variants.py --group block   one group only

Every group holds one setting at each of its values and the rest at its default, measured turn about. Marked with *
is the default. The last line is a JSON document.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch

import stage_timers
from emnist_dali.config import Affine
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.loading import backends
from emnist_dali.pipelines import dali
from record import check_record, write_record
from stage_timers import Setup
from throughput import load
from timing import Rate, measure_interleaved, rate

Measure = Callable[[], float]


def block(setup: Setup) -> dict[str, Measure]:
    """DALI: images a sample."""

    def measure(images: int) -> float:
        with mock.patch.object(dali, "BLOCK", images):
            return stage_timers.pipeline(setup.loader(backend="dali"), setup.seconds)

    return {_mark(n, dali.BLOCK): partial(measure, n) for n in (1, 16, 64, 256)}


def queue(setup: Setup) -> dict[str, Measure]:
    """DALI: batches made ahead."""

    def measure(depth: int) -> float:
        with mock.patch.object(dali, "QUEUE", depth):
            return stage_timers.pipeline(setup.loader(backend="dali"), setup.seconds)

    return {_mark(n, dali.QUEUE): partial(measure, n) for n in (1, 2, 3, 4)}


def ahead(setup: Setup) -> dict[str, Measure]:
    """DALI: batches gathered before it asks for them."""

    def measure(depth: int) -> float:
        with mock.patch.object(backends, "GATHERED_AHEAD", depth):
            return stage_timers.pipeline(setup.loader(backend="dali"), setup.seconds)

    return {_mark(n, backends.GATHERED_AHEAD): partial(measure, n) for n in (1, 2, 4)}


def threads(setup: Setup) -> dict[str, Measure]:
    """Threads of each backend."""
    counts = sorted({1, 2, 4, 8, setup.threads, 2 * setup.threads})
    return {
        _mark(f"{backend}, {n}", f"{setup.config.data.backend}, {setup.threads}"): partial(
            lambda backend, n: stage_timers.pipeline(setup.loader(backend=backend, threads=n), setup.seconds),
            backend,
            n,
        )
        for backend in ("cpu", "dali")
        for n in counts
    }


def gathering(setup: Setup) -> dict[str, Measure]:
    """Records of a batch in one call of a kernel, or slice by slice."""
    shards, batch = setup.shards, np.random.default_rng(0)
    whole, _ = shards.records(np.arange(len(shards)))
    _, sizes = shards.records(np.arange(len(shards)))
    ends = np.cumsum(sizes)

    def indices() -> np.ndarray:
        return batch.integers(0, len(shards), setup.batch_size)

    def slices() -> int:
        np.concatenate([whole[ends[i] - sizes[i] : ends[i]] for i in indices()])
        return setup.batch_size

    def one_call() -> int:
        shards.records(indices())
        return setup.batch_size

    return {
        _mark("one call", "one call"): lambda: rate(one_call, setup.seconds),
        "slices": lambda: rate(slices, setup.seconds),
    }


def codec(setup: Setup) -> dict[str, Measure]:
    """LZ4 records or raw rows, which are twice as large."""
    default = setup.shards.manifest.codec
    part = Part(setup.shards.images(np.arange(len(setup.shards))), setup.shards.labels())
    source = Source("copies", setup.shards.manifest.classes, {"train": part}, (), official=False)
    scratch = Path(_scratch.enter_context(tempfile.TemporaryDirectory(prefix="emnist-dali-codec-")))

    def measure(packed: Shards) -> float:
        return stage_timers.pipeline(replace(setup, shards=packed).loader(), setup.seconds)

    measures = {}
    for name in ("lz4", "raw"):
        pack(source, "codec", scratch / name, name)
        measures[_mark(name, default)] = partial(measure, Shards(scratch / name, "train"))
    return measures


def warp(setup: Setup) -> dict[str, Measure]:
    """Augmentation by one warp in the place of the resize, or by a second pass after it (DALI)."""
    affine = setup.config.data.affine
    if affine is None:
        return {}

    one_pass = dali.preprocess

    def two_passes(records, chunks, matrices, **settings):
        images = one_pass(records, chunks, None, **settings | {"half": False})
        size = (settings["size"],) * 2
        # The matrices are those of the one warp: another geometry, the same work.
        images = dali.fn.transpose(images, perm=[0, 2, 3, 1], transpose_layout=True)
        images = dali.fn.warp_affine(images, matrix=dali.fn.per_frame(matrices), size=size, fill_value=0)
        return dali.fn.transpose(images, perm=[0, 3, 1, 2], transpose_layout=True)

    def measure(backend: str, preprocess: Callable, affine: Affine | None = affine) -> float:
        with mock.patch.object(dali, "preprocess", preprocess):
            return stage_timers.pipeline(setup.loader(backend=backend, affine=affine), setup.seconds)

    default = f"{setup.config.data.backend}, one warp"
    return {
        _mark("cpu, one warp", default): partial(measure, "cpu", one_pass),
        "cpu, resize only": partial(measure, "cpu", one_pass, None),
        _mark("dali, one warp", default): partial(measure, "dali", one_pass),
        "dali, resize and warp": partial(measure, "dali", two_passes),
        "dali, resize only": partial(measure, "dali", one_pass, None),
    }


def output(setup: Setup) -> dict[str, Measure]:
    """On a GPU: float16 or float32 batches of DALI, and pinned memory under the cpu backend's."""
    if setup.device.type != "cuda":
        return {}

    def pageable() -> float:
        empty = torch.empty
        with mock.patch.object(backends.torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k)):
            return stage_timers.pipeline(setup.loader(backend="cpu"), setup.seconds)

    return {
        _mark("dali, float16", "dali, float16"): lambda: stage_timers.pipeline(
            setup.loader(half=True), setup.seconds
        ),
        "dali, float32": lambda: stage_timers.pipeline(setup.loader(half=False), setup.seconds),
        _mark("cpu, pinned", "cpu, pinned"): lambda: stage_timers.pipeline(
            setup.loader(backend="cpu"), setup.seconds
        ),
        "cpu, pageable": pageable,
    }


def step(setup: Setup) -> dict[str, Measure]:
    """On a GPU: the training step eager, compiled, and compiled with CUDA graphs."""
    if setup.device.type != "cuda":
        return {}

    def training(compile: str, mode: str | None) -> Measure:
        config = replace(setup.config, run=replace(setup.config.run, compile=compile))
        with mock.patch.object(torch, "compile", partial(torch.compile, mode=mode)):
            return stage_timers.Training(config, setup.shards, setup.stats, setup.threads, setup.seconds).model

    return {
        "eager": training("off", None),
        _mark("compiled", "compiled"): training("on", None),
        "compiled, CUDA graphs": training("on", "reduce-overhead"),
    }


GROUPS: dict[str, Callable[[Setup], dict[str, Measure]]] = {
    group.__name__: group for group in (block, queue, ahead, threads, gathering, codec, warp, output, step)
}
_scratch = ExitStack()


def _mark(value: Any, default: Any) -> str:
    return f"{value} *" if value == default else str(value)


@contextmanager
def _named_errors(group: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise click.ClickException(f"{group}: {error}") from error


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--group", "asked", type=click.Choice([*GROUPS]), multiple=True, help="Only this; can be repeated.")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", type=click.Choice(["glyphs"]), help="Drawn glyphs even where the split is prepared.")
@click.option("--image-size", type=int, default=112, show_default=True)
@click.option("--batch-size", type=int, default=512, show_default=True)
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the JSON document here too.")
def main(
    asked: tuple[str, ...], split: str, data_dir: str, source: str | None, seconds: float, json_file: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Images a second of the pipeline with each value of each of its settings."""
    with _scratch, _named_errors("setup"):
        check_record(json_file, "variants")
        setup = load(split, data_dir, source, None, seconds, options)
        groups: dict[str, dict[str, Rate]] = {}
        for name in asked or GROUPS:
            with _named_errors(name):
                groups[name] = measure_interleaved(GROUPS[name](setup))
            if not groups[name]:
                continue
            click.echo(f"{name}: {GROUPS[name].__doc__.splitlines()[0]}")
            for value, found in groups[name].items():
                click.echo(
                    f"  {value:<24}{found.median:>12,.0f} img/s  ({min(found.values):,.0f}–{max(found.values):,.0f})"
                )
    document = {
        "benchmark": "variants",
        "machine": environment(),
        "image_size": setup.config.data.image_size,
        "batch_size": setup.batch_size,
        "device": str(setup.device),
        "groups": {
            name: {value: found.to_dict() for value, found in group.items()} for name, group in groups.items()
        },
    }
    if json_file:
        write_record(json_file, document)
    click.echo(json.dumps(document, ensure_ascii=False))


if __name__ == "__main__":
    main()
