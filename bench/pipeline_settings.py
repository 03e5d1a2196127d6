#!/usr/bin/env python
"""Compares the values of each pipeline setting: the reasons for the defaults.

python bench/pipeline_settings.py                 on this machine's device; the table of bench/README.md
python bench/pipeline_settings.py --group block   one group only

A group tries the values of one setting, with all others at their defaults; the measurements are interleaved. The
default is marked with *. A value that fails is reported and the others are measured; the result file is written after
each group. The last line is a JSON document.
"""

import json
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from itertools import product
from math import nan
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

import stage_timers
from emnist_dali.commands.options import with_flags
from emnist_dali.config import Affine
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import environment
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.loading.backends import GATHERED_AHEAD, CpuBackend, DaliBackend, MakeBackend
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
    """Threads of each backend; resident needs them only at the start."""
    default = f"{setup.config.data.backend}, {setup.threads}"
    numbers = sorted({1, 2, 4, 8, setup.threads, 2 * setup.threads})
    return {
        _mark(f"{backend}, {n}", default): _timer(replace(setup, threads=n), backend)
        for backend, n in [*product(("cpu", "dali"), numbers), ("resident", setup.threads)]
    }


def gathering(setup: Setup) -> dict[str, Measure]:
    """The records of a batch in one kernel call, or slice by slice."""
    shards, generator = setup.shards, np.random.default_rng(0)
    (all_records,), (sizes,) = shards.records(np.arange(len(shards)))
    ends = np.cumsum(sizes, dtype=np.int64)

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
        _mark("resident, one warp", default): _timer(setup, "resident", affine),
        "resident, resize only": _timer(setup, "resident"),
    }


def operators(setup: Setup) -> dict[str, Measure]:
    """DALI: the graph cut after each operator, with the recipe's warp if it has one."""
    affine = setup.config.data.affine
    names = ("equalize", "warp_affine" if affine else "resize", "crop_mirror_normalize")
    cut = {f"… {name}": _timer(setup, partial(_cut, names[i + 1 :]), affine) for i, name in enumerate(names[:-1])}
    return {"records": _timer(setup, partial(_cut, names), affine), **cut, "whole *": _timer(setup, "dali", affine)}


def _cut(names: tuple[str, ...], *arguments: Any) -> DaliBackend:
    """A backend whose graph goes without these operators."""
    without = {name: lambda images, *_, **__: images for name in names}
    with mock.patch.multiple(dali.fn, **without), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matrices that no warp takes
        return DaliBackend(*arguments)


def concurrency(setup: Setup) -> dict[str, Measure]:
    """DALI: which operators run side by side on the host, with the recipe's warp if it has one."""
    from nvidia.dali.pipeline import OperatorConcurrency, StreamPolicy

    policies = {
        "DALI's own": {"concurrency": OperatorConcurrency.BACKEND},
        "of different batches *": {},
        "and on streams of their own": {"stream_policy": StreamPolicy.PER_OPERATOR},
    }
    affine = setup.config.data.affine
    return {name: _timer(setup, partial(_with_policy, policy), affine) for name, policy in policies.items()}


def _with_policy(policy: dict[str, Any], *arguments: Any) -> DaliBackend:
    with mock.patch.object(dali, "_graph", partial(dali._graph, **policy)):
        return DaliBackend(*arguments)


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
    """On a GPU: float16 or float32 batches, and pinned or pageable memory of the cpu backend."""
    if setup.device.type != "cuda":
        return {}
    return {
        "dali, float16 *": _timer(setup, "dali", half=True),
        "dali, float32": _timer(setup, "dali", half=False),
        "resident, float16 *": _timer(setup, "resident", half=True),
        "resident, float32": _timer(setup, "resident", half=False),
        "cpu, pinned *": _timer(setup, "cpu"),
        "cpu, pageable": _timer(setup, partial(CpuBackend, pinned=False)),
    }


def step(setup: Setup) -> dict[str, Measure]:
    """On a GPU: the training step eager, compiled, and as one CUDA graph; each an optimizer step a batch."""
    if setup.device.type != "cuda":
        return {}

    def training(compile: str) -> Measure:
        config = setup.config.override({"compile": compile, "accumulation": 1})

        @cache  # made by the first measurement, so that one that fails leaves the others
        def timer() -> TrainingTimer:
            timer = TrainingTimer(replace(setup, config=config))
            _cleanup.callback(timer.close)
            return timer

        return lambda: timer().model()

    names = {"off": "eager", "on": "compiled", "graph": "CUDA graph"}
    default = setup.config.run.compile
    return {_mark(name, names[default]): training(compile) for compile, name in names.items()}


GROUPS: dict[str, Callable[[Setup], dict[str, Measure]]] = {
    group.__name__: group
    for group in (block, queue, ahead, threads, gathering, codec, warp, operators, concurrency, output, step)
}
_cleanup = ExitStack()


def _timer(
    setup: Setup, backend: str | MakeBackend | None = None, affine: Affine | None = None, half: bool | None = None
) -> Measure:
    return lambda: stage_timers.pipeline(setup, setup.loader(backend=backend, affine=affine, half=half))


def _mark(value: Any, default: Any) -> str:
    return f"{value} *" if value == default else str(value)


def measure(group: Callable[[Setup], dict[str, Measure]], setup: Setup) -> tuple[dict[str, Rate], dict[str, str]]:
    """The rate of each value of a group, and the error of each that failed; of "all" if the group could not begin."""
    failures: dict[str, str] = {}

    def guarded(value: str, measure: Measure) -> float:
        if value in failures:
            return nan
        try:
            return measure()
        except Exception as error:  # whatever a library raises on a machine that no one has tried
            failures[value] = with_flags(f"{type(error).__name__}: {error}")
            return nan

    try:
        measures = group(setup)
    except Exception as error:
        return {}, {"all": with_flags(f"{type(error).__name__}: {error}")}
    rates = measure_interleaved({value: partial(guarded, value, one) for value, one in measures.items()})
    return {value: measured for value, measured in rates.items() if value not in failures}, failures


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
    document: dict[str, Any] = {"benchmark": "pipeline_settings", "machine": environment(options["device"])}
    try:
        check_result_file(json_file, "pipeline_settings")
        setup = load(split, data_dir, source, None, seconds, options)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    document |= {
        "image_size": setup.config.data.image_size,
        "batch_size": setup.batch_size,
        "device": str(setup.device),
        "groups": {},
        "failures": {},
    }
    with _cleanup:
        for name in groups or GROUPS:
            rates, failures = measure(GROUPS[name], setup)
            _show(name, rates, failures)
            if rates:
                document["groups"][name] = {value: measured.to_dict() for value, measured in rates.items()}
            if failures:
                document["failures"][name] = failures
            if json_file:
                write_result_file(json_file, document)
    click.echo(json.dumps(document, ensure_ascii=False))
    if document["failures"]:
        raise click.ClickException(f"a value of {', '.join(document['failures'])} failed; the others were measured.")


def _show(group: str, rates: dict[str, Rate], failures: dict[str, str]) -> None:
    if rates or failures:
        click.echo(f"{group}: {GROUPS[group].__doc__}")
    for value, measured in rates.items():
        low, high = min(measured.values), max(measured.values)
        click.echo(f"  {value:<24}{measured.median:>12,.0f} img/s  ({low:,.0f}–{high:,.0f})")
    for value, error in failures.items():
        click.echo(f"  {value:<24}failed: {error}")


if __name__ == "__main__":
    main()
