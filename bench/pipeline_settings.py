#!/usr/bin/env python
"""Compares the values of each pipeline setting: the reasons for the defaults.

python bench/pipeline_settings.py                 on this machine's device; the table of bench/README.md
python bench/pipeline_settings.py --group block   one group only

A group tries the values of one setting, with all others at their defaults; the measurements are interleaved. The
default is marked with *. The last line is a JSON document.
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
from emnist_dali.loading.backends import GATHERED_AHEAD, CpuBackend, DaliBackend, MakeBackend
from emnist_dali.options import with_flags
from emnist_dali.pipelines import dali
from result_file import check_result_file, write_result_file
from stage_timers import Setup, TrainingTimer
from throughput import load
from timing import Rate, measure_interleaved, rate

Measure = Callable[[], float]


def block(setup: Setup) -> dict[str, Measure]:
    """DALI: images per DALI sample."""
    return {_mark(n, dali.BLOCK): _timer(setup, partial(DaliBackend, block=n)) for n in (1, 16, 64, 256)}


def queue(setup: Setup) -> dict[str, Measure]:
    """DALI: batches made ahead."""
    return {_mark(n, dali.QUEUE): _timer(setup, partial(DaliBackend, queue=n)) for n in (1, 2, 3, 4)}


def ahead(setup: Setup) -> dict[str, Measure]:
    """DALI: batches gathered before DALI requests them."""
    return {_mark(n, GATHERED_AHEAD): _timer(setup, partial(DaliBackend, gathered_ahead=n)) for n in (1, 2, 4)}


def threads(setup: Setup) -> dict[str, Measure]:
    """Threads of each backend."""
    default = f"{setup.config.data.backend}, {setup.threads}"
    return {
        _mark(f"{backend}, {n}", default): _timer(replace(setup, threads=n), backend)
        for backend in ("cpu", "dali")
        for n in sorted({1, 2, 4, 8, setup.threads, 2 * setup.threads})
    }


def gathering(setup: Setup) -> dict[str, Measure]:
    """The records of a batch in one kernel call, or slice by slice."""
    shards, generator = setup.shards, np.random.default_rng(0)
    all_records, sizes = shards.records(np.arange(len(shards)))
    ends = np.cumsum(sizes)

    def random_indices() -> np.ndarray:
        return generator.integers(0, len(shards), setup.batch_size)

    def slices() -> int:
        np.concatenate([all_records[ends[i] - sizes[i] : ends[i]] for i in random_indices()])
        return setup.batch_size

    def one_call() -> int:
        shards.records(random_indices())
        return setup.batch_size

    return {
        "one call *": lambda: rate(one_call, setup.seconds),
        "slices": lambda: rate(slices, setup.seconds),
    }


def codec(setup: Setup) -> dict[str, Measure]:
    """LZ4 records, or raw pixels, which take twice the space."""
    default = setup.shards.manifest.codec
    part = Part(setup.shards.images(np.arange(len(setup.shards))), setup.shards.labels())
    source = Source("copies", setup.shards.manifest.classes, {"train": part}, (), official=False)
    scratch = Path(_cleanup.enter_context(tempfile.TemporaryDirectory(prefix="emnist-dali-codec-")))
    timers = {}
    for name in ("lz4", "raw"):
        pack(source, "codec", scratch / name, name)
        timers[_mark(name, default)] = _timer(replace(setup, shards=Shards(scratch / name, "train")))
    return timers


def warp(setup: Setup) -> dict[str, Measure]:
    """Augmentation by a warp that replaces the resize, or by a second pass after it (DALI)."""
    affine = setup.config.data.affine
    if affine is None:
        return {}
    default = f"{setup.config.data.backend}, one warp"
    return {
        _mark("cpu, one warp", default): _timer(setup, "cpu", affine),
        "cpu, resize only": _timer(setup, "cpu"),
        _mark("dali, one warp", default): _timer(setup, "dali", affine),
        "dali, resize and warp": _timer(setup, _two_passes, affine),
        "dali, resize only": _timer(setup, "dali"),
    }


def _two_passes(*arguments: Any) -> DaliBackend:
    """A backend whose graph warps after the resize; no one else needs another graph, so it is patched in."""
    one_pass = dali.preprocess

    def preprocess(records, chunks, matrices, pixels):
        images = one_pass(records, chunks, None, replace(pixels, dtype="float32"))
        # The matrices are those of the single warp: the geometry is wrong, the amount of work right.
        images = dali.fn.transpose(images, perm=[0, 2, 3, 1], transpose_layout=True)
        images = dali.fn.warp_affine(
            images, matrix=dali.fn.per_frame(matrices), size=(pixels.size, pixels.size), fill_value=0
        )
        return dali.fn.transpose(images, perm=[0, 3, 1, 2], transpose_layout=True)

    with mock.patch.object(dali, "preprocess", preprocess):
        return DaliBackend(*arguments)


def output(setup: Setup) -> dict[str, Measure]:
    """On a GPU: float16 or float32 batches from DALI, and pinned or pageable memory of the cpu backend."""
    if setup.device.type != "cuda":
        return {}
    return {
        "dali, float16 *": _timer(setup, "dali", half=True),
        "dali, float32": _timer(setup, "dali", half=False),
        "cpu, pinned *": _timer(setup, "cpu"),
        "cpu, pageable": _timer(setup, partial(CpuBackend, pinned=False)),
    }


def step(setup: Setup) -> dict[str, Measure]:
    """On a GPU: the training step eager, compiled, and compiled with CUDA graphs."""
    if setup.device.type != "cuda":
        return {}

    def training(compile: str, mode: str | None = None) -> Measure:
        compiled = replace(setup, config=setup.config.override({"compile": compile}))
        with mock.patch.object(torch, "compile", partial(torch.compile, mode=mode)):
            timer = TrainingTimer(compiled)
        _cleanup.callback(timer.close)
        return timer.model

    return {
        "eager": training("off"),
        "compiled *": training("on"),
        "compiled, CUDA graphs": training("on", "reduce-overhead"),
    }


GROUPS: dict[str, Callable[[Setup], dict[str, Measure]]] = {
    group.__name__: group for group in (block, queue, ahead, threads, gathering, codec, warp, output, step)
}
_cleanup = ExitStack()


def _timer(
    setup: Setup, backend: str | MakeBackend | None = None, affine: Affine | None = None, half: bool | None = None
) -> Measure:
    return lambda: stage_timers.pipeline(setup, setup.loader(backend=backend, affine=affine, half=half))


def _mark(value: Any, default: Any) -> str:
    return f"{value} *" if value == default else str(value)


@contextmanager
def _named_errors(group: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise click.ClickException(f"{group}: {with_flags(str(error))}") from error


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--group", "groups", type=click.Choice([*GROUPS]), multiple=True, help="Only this group; repeatable.")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", type=click.Choice(["glyphs"]), help="Drawn glyphs even if the split is prepared.")
@click.option("--image-size", type=int, default=112, show_default=True)
@click.option("--batch-size", type=int, default=512, show_default=True)
@click.option("--device", help="cuda, cuda:1 or cpu.  [default: auto]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Per repetition; there are 5.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(
    groups: tuple[str, ...], split: str, data_dir: str, source: str | None, seconds: float, json_file: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Images/s of the pipeline with each value of each of its settings."""
    rates: dict[str, dict[str, Rate]] = {}
    with _cleanup, _named_errors("setup"):
        check_result_file(json_file, "pipeline_settings")
        setup = load(split, data_dir, source, None, seconds, options)
        for name in groups or GROUPS:
            with _named_errors(name):
                rates[name] = measure_interleaved(GROUPS[name](setup))
            if not rates[name]:
                continue
            click.echo(f"{name}: {GROUPS[name].__doc__}")
            for value, measured in rates[name].items():
                low, high = min(measured.values), max(measured.values)
                click.echo(f"  {value:<24}{measured.median:>12,.0f} img/s  ({low:,.0f}–{high:,.0f})")
        document = {
            "benchmark": "pipeline_settings",
            "machine": environment(),
            "image_size": setup.config.data.image_size,
            "batch_size": setup.batch_size,
            "device": str(setup.device),
            "groups": {
                name: {value: measured.to_dict() for value, measured in group.items()}
                for name, group in rates.items()
            },
        }
        if json_file:
            write_result_file(json_file, document)
    click.echo(json.dumps(document, ensure_ascii=False))


if __name__ == "__main__":
    main()
