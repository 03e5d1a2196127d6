#!/usr/bin/env python
"""Batches from data larger than memory, beside the disk's own rate: this project's, and those of two peers.

python bench/larger_than_memory.py --records 10000000 --memory 1024

Writes the records of the prepared split again and again, and reads them in processes whose memory, the system's cache
for them included, is bounded by a control group (Linux, as root), each after the files have been dropped from the
cache. The peers' processes are not bounded, and should be measured within their first epoch. The last line is a JSON
document.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

import growth
import stage_timers
from emnist_dali.commands.options import with_flags
from emnist_dali.core import disk
from emnist_dali.core.errors import UserError
from emnist_dali.core.machine import available_cpus, environment
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import READERS, Shards
from emnist_dali.data.stats import Stats, statistics
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader
from emnist_dali.loading.windows import BLOCK
from gpu_check import raise_on_signals
from peer_jobs import OURS, TOLERANCE
from peers import PEERS, Peer
from peers.process import Process
from peers.work import Missing, Work, check
from result_file import check_result_file, write_result_file

BATCH_SIZE = 512
SIZE = 28
PART = 1 << 22  # bytes that the disk is asked for at once
GROUPS = Path("/sys/fs/cgroup")
LARGE_PEERS = {name: PEERS[name] for name in ("FFCV, fused", "MosaicML Streaming")}
DISK = "disk, in order"
DIRECT = "disk, past the cache, in threads"
BATCHES = "batches, its own shuffle"
FROM_MEMORY = "batches from memory"
# What else the processes measure: whether images are shuffled in windows, and whether batches are made of them.
KINDS = {
    "records, all shuffled": (False, False),
    "records, windows": (True, False),
    "batches, all shuffled": (False, True),
    "batches, windows": (True, True),
}
_MEASURED = KINDS | {FROM_MEMORY: (False, True)}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--records", type=click.IntRange(10**4), default=10**7, show_default=True)
@click.option("--memory", type=click.IntRange(256), default=1024, show_default=True, help="MiB, cache included.")
@click.option(
    "--window", type=click.IntRange(BLOCK), default=2**17, show_default=True, help="Images shuffled together."
)
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
    """The document; what is measured of one system's files is measured `repeats` times, in turns."""
    document = {
        "benchmark": "larger_than_memory",
        "machine": environment("cpu"),
        "data": stage_timers.data_description(shards),
        "records": records,
        "memory_mib": memory,
        "window": window,
        "seconds": seconds,
        "repeats": repeats,
        "systems": {},
    }
    with tempfile.TemporaryDirectory(prefix="emnist-dali-large-", dir=shards.folder.absolute().parent) as scratch:
        for codec in ("lz4", "raw"):
            _progress(f"{OURS}, {codec}")
            folder = Path(scratch) / codec
            document["systems"][f"{OURS}, {codec}"] = _ours(shards, folder, codec, document)
            shutil.rmtree(folder)
            shutil.rmtree(_few(folder))
        for name, peer in LARGE_PEERS.items():
            _progress(name)
            folder = Path(scratch) / "peer"
            folder.mkdir()
            document["systems"][name] = _theirs(peer, shards, folder, document)
            shutil.rmtree(folder)
    return document


def _ours(shards: Shards, folder: Path, codec: str, asked: dict[str, Any]) -> dict[str, Any]:
    """In processes that are bounded where this user may; also of a copy of the records that fits memory."""
    _check_space(folder, 1.2 * shards.shape[0] * shards.shape[1] * asked["records"])
    growth.repeat_records(shards, folder, asked["records"], codec)
    growth.repeat_records(shards, _few(folder), len(shards), codec)
    os.sync()  # what is not written yet cannot be dropped from the cache
    stats = asdict(statistics(shards.folder, SIZE))
    settings = {name: asked[name] for name in ("window", "seconds")} | {"stats": stats, "group": None}
    values: dict[str, list[float]] = {name: [] for name in (DISK, DIRECT, *KINDS)}
    with bounded(asked["memory_mib"]) as group:
        for name in [*values] * asked["repeats"]:
            each = {"folder": str(folder), "name": name, "group": group}
            values[name].append(_in_a_process(settings | each))
    each = {"folder": str(_few(folder)), "name": FROM_MEMORY}
    values[FROM_MEMORY] = [_in_a_process(settings | each) for _ in range(asked["repeats"])]
    whole = Shards(folder, "train")
    return {"records": len(whole), "bytes": whole.bytes, "bounded": bool(group), "images_per_second": values}


def _few(folder: Path) -> Path:
    """Beside many records those that fit memory."""
    return folder.with_name(f"{folder.name}-few")


def _theirs(peer: Peer, shards: Shards, folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Without a bound: from caches that its files have been dropped from."""
    if find_spec("cv2") is None or find_spec("psutil") is None:
        return {"missing": "Peers need OpenCV and psutil: pip install -e '.[peers]'."}
    images = shards.images(np.arange(min(len(shards), asked["records"])))
    _check_space(folder, 1.5 * images[0].nbytes * asked["records"])
    np.save(folder / "images.npy", images)
    stats = statistics(shards.folder, SIZE)
    work = Work(
        name="peer",
        folder=folder,
        shards=shards.folder.absolute(),
        size=SIZE,
        mean=stats.mean,
        std=stats.std,
        batch_size=BATCH_SIZE,
        device="cpu",
        half=False,
        threads=available_cpus(),
        affine=None,
        repeats=max(asked["records"] // len(images), 2),
    )
    values: dict[str, list[float]] = {DISK: [], BATCHES: []}
    try:
        with closing(Process(peer, work)) as process:  # writes the files
            off = check(process.batch(), work)
        if not off <= TOLERANCE[work.half]:  # False for NaN
            return {"failed": f"off by {off:.2f} grey levels: not timed"}
        os.sync()
        samples = len(images) * work.repeats
        paths = [work.own] if work.own.is_file() else sorted(path for path in work.own.rglob("*") if path.is_file())
        for _ in range(asked["repeats"]):
            _drop_from_cache(paths)
            values[DISK].append(_disk(paths, asked["seconds"]) * samples / process.disk_bytes)
            _drop_from_cache(paths)
            with closing(Process(peer, work)) as process:
                values[BATCHES].append(process.rate(asked["seconds"])["images_per_second"])
    except (Missing, RuntimeError) as error:
        return {"missing" if isinstance(error, Missing) else "failed": str(error).splitlines()[-1]}
    return {"records": samples, "bytes": process.disk_bytes, "bounded": False, "images_per_second": values}


def _check_space(folder: Path, size: float) -> None:
    if shutil.disk_usage(folder.parent).free < size:
        raise UserError(f"{folder.parent} lacks {size / 1e9:.1f} GB of free space; choose another --data-dir.")


def table(document: dict[str, Any]) -> str:
    lines = [
        f"In {document['memory_mib']} MiB where bounded; windows of {document['window']:,} images.",
        "",
        "| what | records | GB | bounded | img/s | lowest–highest | of the disk's rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for system, measured in document["systems"].items():
        if "images_per_second" not in measured:
            lines.append(f"| {system} | | | | {measured.get('missing') or measured['failed']} | | |")
            continue
        in_order = float(np.median(measured["images_per_second"][DISK]))
        for name, values in measured["images_per_second"].items():
            median = float(np.median(values))
            what = ["", "", "", f"{median:,.0f}", f"{min(values):,.0f}–{max(values):,.0f}"]
            if name != FROM_MEMORY:
                what[:3] = [
                    f"{measured['records']:,}",
                    f"{measured['bytes'] / 1e9:.1f}",
                    "yes" if measured["bounded"] else "no",
                ]
            share = "" if name == FROM_MEMORY else f"{100 * median / in_order:.0f} %"
            lines.append(f"| {system}: {name} | {' | '.join([*what, share])} |")
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
    if settings["name"] == FROM_MEMORY:
        _disk(paths, settings["seconds"])  # so that they are in the cache
    else:
        _drop_from_cache(paths)
    shards = Shards(settings["folder"], "train")
    if settings["name"] in (DISK, DIRECT):
        read = _disk if settings["name"] == DISK else _past_the_cache
        return read(paths, settings["seconds"]) * len(shards) / shards.bytes
    in_windows, batches = _MEASURED[settings["name"]]
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


def _drop_from_cache(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _progress(text: str) -> None:
    click.echo(f"… {text}", err=True)


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Images/s of `step`, the first of which, which compiles, does not count."""
    step()
    started, images = perf_counter(), 0
    while True:
        images += step()
        if (passed := perf_counter() - started) > seconds:
            return images / passed


def _disk(paths: list[Path], seconds: float) -> float:
    """Bytes/s of reading files from their beginnings to their ends."""
    started, read = perf_counter(), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while part := file.read(PART):
                read += len(part)
                if perf_counter() > started + seconds:
                    return read / (perf_counter() - started)
    return read / (perf_counter() - started)


def _past_the_cache(paths: list[Path], seconds: float) -> float:
    """The same with as many threads as `Shards.hold` has, and as that reads data larger than memory."""
    parts = [
        (path, start, min(start + PART, path.stat().st_size))
        for path in paths
        for start in range(0, path.stat().st_size, PART)
    ]
    memory, started = disk.allocate([PART] * READERS), perf_counter()

    def read(thread: int) -> int:
        read = 0
        for path, start, stop in parts[thread::READERS]:
            read += len(disk.read(path, start, stop, memory[thread], cached=False))
            if perf_counter() > started + seconds:
                break
        return read

    with ThreadPoolExecutor(READERS) as pool:
        return sum(pool.map(read, range(READERS))) / (perf_counter() - started)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(_measure(json.loads(sys.argv[2])))
    else:
        main()
