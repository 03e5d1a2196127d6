"""How the cost of an image grows with the data set, the batch and the threads: `throughput.py --growth`."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from math import nan
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import stage_timers
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import write_json
from emnist_dali.data import pack as packing
from emnist_dali.data.manifest import MANIFEST, ShardFile, save_verified, shard_name
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.data.stats import Stats
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader
from stage_timers import Setup
from timing import measure_interleaved, rate

RECORDS = (10**4, 10**5, 10**6, 10**7)
BATCH_SIZES = tuple(2**k for k in range(6, 14))
_BYTES_PER_RECORD = 400


def measure(setup: Setup) -> dict[str, Any]:
    """The document's `by_records`, `by_batch` and `by_threads`."""
    threads = sorted({1, 2, 4, 8, 16, setup.threads} & set(range(1, setup.threads + 1)))
    return {
        "by_records": _by_records(setup),
        "by_batch": [_stages(replace(setup, batch_size=batch_size)) for batch_size in BATCH_SIZES],
        "by_threads": [_stages(replace(setup, threads=n)) for n in threads],
    }


def _stages(setup: Setup) -> dict[str, Any]:
    samples = len(setup.shards)
    # At least 4 batches, so that a small data set is repeated.
    indices = np.resize(np.arange(samples), max(samples, 4 * setup.batch_size))
    rates = measure_interleaved(
        {
            "read": lambda: stage_timers.read(setup),
            "pipeline": lambda: stage_timers.pipeline(setup, setup.loader(indices=indices)),
            "mix": lambda: stage_timers.mix(setup),
        }
    )
    rows = {stage: measured.to_dict() for stage, measured in rates.items()}
    return {"batch_size": setup.batch_size, "threads": setup.threads, **rows}


def _by_records(setup: Setup) -> list[dict[str, Any]]:
    """Each size in its own process, whose peak memory is measured, on the CPU engine."""
    results = []
    with tempfile.TemporaryDirectory(prefix="emnist-dali-growth-", dir=setup.shards.folder.parent) as scratch:
        if shutil.disk_usage(scratch).free < 1.2 * _BYTES_PER_RECORD * max(RECORDS):
            raise UserError(
                f"{scratch} needs {_BYTES_PER_RECORD * max(RECORDS) / 1e9:.0f} GB of free space; choose another "
                "--data-dir."
            )
        for records in RECORDS:
            folder = Path(scratch) / str(records)
            repeat_records(setup.shards, folder, records)
            settings = {
                "folder": str(folder),
                "batch_size": min(setup.batch_size, records),
                "size": setup.config.data.image_size,
                "stats": asdict(setup.stats),
                "threads": setup.threads,
                "seconds": setup.seconds,
            }
            command = [sys.executable, __file__, json.dumps(settings)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append({"records": records, **json.loads(output)})
            shutil.rmtree(folder)
    return results


def repeat_records(shards: Shards, folder: Path, records: int, codec: str | None = None) -> None:
    """Writes a split of `records` records, those of `shards` repeated; every shard is a file of its own.

    The `codec` is that of `shards` by default.
    """
    whole_shards, rest = divmod(records, packing.SHARD_SAMPLES)
    files: list[ShardFile] = []
    manifest = None
    folder.mkdir()
    for samples, copies in ((packing.SHARD_SAMPLES, whole_shards), (rest, 1)):
        if not samples or not copies:
            continue
        indices = np.resize(np.arange(len(shards)), samples)
        part = Part(shards.images(indices), shards.labels(indices))
        source = Source("copies", shards.manifest.classes, {"train": part}, (), official=False)
        manifest = pack(source, "growth", folder / "one", codec or shards.manifest.codec)
        (packed,) = manifest.shards["train"]
        for _ in range(copies):
            name = shard_name("train", len(files))
            shutil.copyfile(folder / "one" / packed.file, folder / name)
            files.append(replace(packed, file=name))
        shutil.rmtree(folder / "one")
    repeated = replace(manifest, shards={"train": tuple(files)})
    write_json(folder / MANIFEST, asdict(repeated))
    save_verified(folder, repeated)  # opening is measured without hashing


def _measure_size(settings: dict[str, Any]) -> dict[str, float]:
    """In its own process: seconds to open the data and to the first batch, rate, and peak memory in MiB."""
    started = perf_counter()
    shards = Shards(Path(settings["folder"]), "train")
    loader = Loader(
        shards,
        BatchSpec(batch_size=settings["batch_size"]),
        Stats(**settings["stats"]).pixel_spec(shards.shape, settings["size"]),
        threads=settings["threads"],
    )
    open_seconds = perf_counter() - started
    memory: list[float] = []
    with loader:
        batches = stage_timers.endless(loader)
        next(batches)
        first_batch_seconds = perf_counter() - started

        def measure() -> float:
            value = rate(lambda: len(next(batches).labels), settings["seconds"])
            memory.append(anonymous_mib())  # while the loader holds its batches
            return value

        rates = measure_interleaved({"pipeline": measure})["pipeline"]
    return {
        "open_seconds": open_seconds,
        "first_batch_seconds": first_batch_seconds,
        "peak_mib": max(memory),
        **rates.to_dict(),
    }


def anonymous_mib() -> float:
    """This process's RssAnon: the shards' mapped pages are page cache and do not count. NaN if not on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return nan
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def table(document: dict[str, Any]) -> str:
    """The document of `measure` as text."""
    lines = [f"{'records':>12}{'open, ms':>12}{'first, ms':>12}{'img/s':>12}{'peak, MiB':>12}"]
    for row in document["by_records"]:
        lines.append(
            f"{row['records']:>12,}{1e3 * row['open_seconds']:>12,.1f}{1e3 * row['first_batch_seconds']:>12,.1f}"
            f"{row['images_per_second']:>12,.0f}{row['peak_mib']:>12,.1f}"
        )
    for key in ("by_batch", "by_threads"):
        lines.append(f"\n{'batch':>12}{'threads':>12}{'read':>12}{'pipeline':>12}{'mix':>14}  img/s")
        for row in document[key]:
            rates = (row[name]["images_per_second"] for name in ("read", "pipeline", "mix"))
            lines.append(
                f"{row['batch_size']:>12,}{row['threads']:>12}{{:>12,.0f}}{{:>12,.0f}}{{:>14,.0f}}".format(*rates)
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(_measure_size(json.loads(sys.argv[1]))))
