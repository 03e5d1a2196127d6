"""How the cost of an image grows with the data set, the batch and the threads: `throughput.py --scale`."""

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
from emnist_dali.data.manifest import MANIFEST, ShardFile, remember
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.data.stats import Stats
from emnist_dali.loading.loader import Loader
from stage_timers import Setup
from timing import measure_interleaved, rate

RECORDS = (10**4, 10**5, 10**6, 10**7)
BATCHES = tuple(2**k for k in range(6, 14))
_BYTES_A_RECORD = 400


def measure(setup: Setup) -> dict[str, Any]:
    """The document's `by_records`, `by_batch` and `by_threads`."""
    config, shards = setup.config, setup.shards
    classes = len(shards.manifest.classes)

    def growth(batch_size: int, threads: int) -> dict[str, Any]:
        def loader() -> Loader:
            # Small data sets are gone through more than once a batch.
            members = np.resize(np.arange(len(shards)), max(len(shards), 4 * batch_size))
            return setup.loader(members=members, batch_size=batch_size, threads=threads)

        rates = measure_interleaved(
            {
                "read": lambda: stage_timers.read(shards, batch_size, threads, setup.seconds),
                "pipeline": lambda: stage_timers.pipeline(loader(), setup.seconds),
                "mix": lambda: stage_timers.mix(config, batch_size, classes, setup.seconds),
            }
        )
        return {"batch_size": batch_size, "threads": threads, **{name: r.to_dict() for name, r in rates.items()}}

    threads = sorted({1, 2, 4, 8, 16, setup.threads} & set(range(1, setup.threads + 1)))
    return {
        "by_records": _by_records(setup),
        "by_batch": [growth(batch_size, setup.threads) for batch_size in BATCHES],
        "by_threads": [growth(setup.batch_size, n) for n in threads],
    }


def _by_records(setup: Setup) -> list[dict[str, Any]]:
    """Each size in a process of its own, on the CPU engine: peak memory is that of the process."""
    results = []
    with tempfile.TemporaryDirectory(prefix="emnist-dali-scale-", dir=setup.shards.folder.parent) as scratch:
        if shutil.disk_usage(scratch).free < 1.2 * _BYTES_A_RECORD * max(RECORDS):
            raise UserError(
                f"{scratch} needs {_BYTES_A_RECORD * max(RECORDS) / 1e9:.0f} GB free; name another --data-dir."
            )
        for records in RECORDS:
            folder = Path(scratch) / str(records)
            _grow(setup.shards, folder, records)
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


def _grow(shards: Shards, folder: Path, records: int) -> None:
    """A folder of `records` records made of those of `shards`, again and again, in files of their own."""
    whole, rest = divmod(records, packing.SHARD_SAMPLES)
    files: list[ShardFile] = []
    manifest = None
    folder.mkdir()
    for samples, copies in ((packing.SHARD_SAMPLES, whole), (rest, 1)):
        if not samples or not copies:
            continue
        indices = np.resize(np.arange(len(shards)), samples)
        part = Part(shards.images(indices), shards.labels(indices))
        source = Source("copies", shards.manifest.classes, {"train": part}, (), official=False)
        manifest = pack(source, "scale", folder / "one", shards.manifest.codec)
        (packed,) = manifest.shards["train"]
        for _ in range(copies):
            name = f"train-{len(files):05d}.safetensors"
            shutil.copyfile(folder / "one" / packed.file, folder / name)
            files.append(replace(packed, file=name))
        shutil.rmtree(folder / "one")
    grown = replace(manifest, shards={"train": tuple(files)})
    write_json(folder / MANIFEST, asdict(grown))
    remember(folder, grown)  # opening is measured, not hashing what nobody has seen before


def _one_size(settings: dict[str, Any]) -> dict[str, float]:
    """In a process of its own: seconds to open and to the first batch, rate, and peak memory in MiB."""
    started = perf_counter()
    shards = Shards(Path(settings["folder"]), "train")
    loader = Loader(
        shards,
        batch_size=settings["batch_size"],
        size=settings["size"],
        stats=Stats(**settings["stats"]),
        threads=settings["threads"],
    )
    opened = perf_counter() - started
    memory: list[float] = []
    with loader:
        stream = stage_timers.forever(loader)
        next(stream)
        first = perf_counter() - started

        def batch() -> int:
            return len(next(stream).labels)

        def measure() -> float:
            value = rate(batch, settings["seconds"])
            memory.append(anonymous_mib())  # while the loader's batches are there
            return value

        rates = measure_interleaved({"pipeline": measure})["pipeline"]
    return {"open_seconds": opened, "first_batch_seconds": first, "peak_mib": max(memory), **rates.to_dict()}


def anonymous_mib() -> float:
    """RssAnon of this process: mapped pages of the shards are the kernel's, not the program's. NaN off Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return nan
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def table(document: dict[str, Any]) -> str:
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
    print(json.dumps(_one_size(json.loads(sys.argv[1]))))
