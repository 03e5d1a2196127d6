#!/usr/bin/env python
"""Batches from data larger than memory, beside the disk's own rate: one shuffle of all, and shuffled in windows.

python bench/larger_than_memory.py --records 10000000 --memory 1024

Writes the records of the prepared split again and again, and reads them in processes whose memory, the system's cache
for them included, is bounded by a control group (Linux, as root), each after the files have been dropped from the
cache. The last line is a JSON document.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

import growth
import stage_timers
from emnist_dali.commands.options import with_flags
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import available_cpus, environment
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats, statistics
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader
from gpu_check import raise_on_signals
from result_file import check_result_file, write_result_file

BATCH_SIZE = 512
SIZE = 28
GROUPS = Path("/sys/fs/cgroup")
DISK = "disk, in order"
# What else the processes measure: whether images are shuffled in windows, and whether batches are made of them.
KINDS = {
    "records, all shuffled": (False, False),
    "records, windows": (True, False),
    "batches, all shuffled": (False, True),
    "batches, windows": (True, True),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--records", type=click.IntRange(10**4), default=10**7, show_default=True)
@click.option("--memory", type=click.IntRange(256), default=1024, show_default=True, help="MiB, cache included.")
@click.option("--window", type=click.IntRange(1), default=2**18, show_default=True, help="Images shuffled together.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", help="As for emnist-dali prepare.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the JSON document here.")
def main(
    records: int, memory: int, window: int, seconds: float, repeats: int, split: str, data_dir: str,
    source: str | None, json_file: Path | None,
) -> None:  # fmt: skip
    """Images/s from data larger than memory."""
    raise_on_signals()
    try:
        check_result_file(json_file, "larger_than_memory")
        folder = prepare(split, source, data_dir)
        document = measure(Shards(folder, "train"), records, memory, window, seconds, repeats)
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    click.echo(table(document))
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(shards: Shards, records: int, memory: int, window: int, seconds: float, repeats: int) -> dict[str, Any]:
    """The document; each kind is measured `repeats` times, in turns."""
    with tempfile.TemporaryDirectory(prefix="emnist-dali-large-", dir=shards.folder.parent) as scratch:
        if shutil.disk_usage(scratch).free < 1.2 * shards.bytes / len(shards) * records:
            raise UserError(f"{scratch} has too little space for {records:,} records; choose another --data-dir.")
        folder = Path(scratch) / "records"
        growth.repeat_records(shards, folder, records)
        os.sync()  # what is not written yet cannot be dropped from the cache
        total = Shards(folder, "train").bytes
        settings = {
            "folder": str(folder),
            "window": window,
            "seconds": seconds,
            "stats": asdict(statistics(shards.folder, SIZE)),
        }
        values: dict[str, list[float]] = {name: [] for name in (DISK, *KINDS)}
        with bounded(memory) as group:
            for _ in range(repeats):
                for name in values:
                    values[name].append(_in_a_process(settings | {"name": name, "group": group}))
        small = {"name": "batches, all shuffled", "folder": str(shards.folder), "group": None}
        from_memory = _in_a_process(settings | small)
    return {
        "benchmark": "larger_than_memory",
        "machine": environment("cpu"),
        "data": stage_timers.data_description(shards),
        "records": records,
        "bytes": total,
        "records_from_memory": len(shards),
        "memory_mib": memory,
        "bounded_by": "control group" if group else "nothing: caches were only dropped before",
        "window": window,
        "seconds": seconds,
        "images_per_second": values,
        "from_memory": from_memory,
    }


def table(document: dict[str, Any]) -> str:
    disk = float(np.median(document["images_per_second"][DISK]))
    size = document["bytes"] / document["records"]
    lines = [
        f"{document['records']:,} records of {size:.0f} bytes, {document['bytes'] / 1e9:.1f} GB, in "
        f"{document['memory_mib']} MiB; bounded by: {document['bounded_by']}",
        "",
        "| what | img/s | lowest–highest | share of the disk's rate |",
        "|---|---|---|---|",
    ]
    for name, values in document["images_per_second"].items():
        median = float(np.median(values))
        spread = f"{min(values):,.0f}–{max(values):,.0f}"
        lines.append(f"| {name} | {median:,.0f} | {spread} | {100 * median / disk:.1f} % |")
    lines.append(
        f"| batches from memory, {document['records_from_memory']:,} records | {document['from_memory']:,.0f} | | |"
    )
    return "\n".join(lines)


@contextmanager
def bounded(memory: int) -> Iterator[str | None]:
    """The file that takes the processes whose memory is bounded; None where this user may not."""
    for parent, limit in ((GROUPS / "memory", "memory.limit_in_bytes"), (GROUPS, "memory.max")):
        group = parent / f"emnist-dali-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(memory << 20))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        try:
            yield str(group / "cgroup.procs")
        finally:
            group.rmdir()
        return
    yield None


def _in_a_process(settings: dict[str, Any]) -> float:
    """Raises UserError if it fails, as it does where the memory is too little."""
    command = [sys.executable, __file__, "--measure", json.dumps(settings)]
    if settings["group"]:  # from its first byte on
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', settings["group"], *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    finally:
        process.kill()
        process.wait()  # its control group can be removed only then
    if process.returncode:
        raise UserError(f"«{settings['name']}» failed with {process.returncode}; does it need more --memory?")
    return float(output)


def _measure(settings: dict[str, Any]) -> float:
    """In a process of its own: images/s of one of KINDS."""
    paths = sorted(Path(settings["folder"]).glob("train-*.safetensors"))
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    shards = Shards(settings["folder"], "train")
    if settings["name"] == DISK:
        return _disk(paths, settings["seconds"]) * len(shards) / shards.bytes
    in_windows, batches = KINDS[settings["name"]]
    spec = BatchSpec(batch_size=BATCH_SIZE, window=settings["window"] if in_windows else None)
    pixels = Stats(**settings["stats"]).pixel_spec(shards.shape, SIZE)
    with Loader(shards, spec, pixels) as loader:
        if batches:
            stream = stage_timers.endless(loader)
            return _rate(lambda: len(next(stream).labels), settings["seconds"])
        loader.plan.read_ahead()
        numbers, threads = count(), available_cpus()

        def gather(number: int) -> int:
            batch = loader.plan.batch(number)
            batch.shards.records(batch.indices)
            return len(batch.indices)

        with ThreadPoolExecutor(threads) as pool:
            return _rate(lambda: sum(pool.map(gather, islice(numbers, 8 * threads))), settings["seconds"])


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Images/s of `step`, the first of which, which compiles, does not count."""
    step()
    started, images = perf_counter(), 0
    while (now := perf_counter()) < started + seconds:
        images += step()
    return images / (now - started)


def _disk(paths: list[Path], seconds: float) -> float:
    """Bytes/s of reading files from their beginnings to their ends."""
    started, read = perf_counter(), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while part := file.read(1 << 22):
                read += len(part)
                if perf_counter() > started + seconds:
                    return read / (perf_counter() - started)
    return read / (perf_counter() - started)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(_measure(json.loads(sys.argv[2])))
    else:
        main()
