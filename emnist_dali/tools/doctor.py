"""What this machine can do for a training, and what is in the way."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from huggingface_hub.constants import ENDPOINT

from ..core.errors import UserError
from ..core.extras import EXTRAS, missing_packages
from ..core.files import reason
from ..core.machine import environment, gpu_memory, reachable
from ..data.emnist import ARCHIVE_URL
from ..data.manifest import DEMO, MANIFEST, read_manifest, verify
from ..data.pack import pack
from ..data.shards import Shards
from ..data.sources import Part, Source
from ..data.stats import Stats
from ..loading.batch_plan import BatchSpec
from ..loading.loader import Loader
from ..pipelines import kernel_cache
from ..recipes import RECIPES
from ..runtime import has_gpu
from ..training.memory import describe, fitting_batch_size

STATS = Stats(0.17, 0.33)  # about EMNIST's
# Packed data, a run's checkpoints and DALI's own files fit several times.
FREE_GB = 2


@dataclass(frozen=True)
class Check:
    """`advice` is one line on what to do, None where nothing needs to be done."""

    name: str
    found: str
    advice: str | None = None


def examine(data_dir: Path) -> dict[str, Any]:
    """The machine, and each check with what was found; hashes every shard in `data_dir` and asks two servers."""
    checks = [
        _torch(),
        _gpu(),
        *_memory(),
        *_engines(),
        *_extras(),
        *_data(data_dir),
        _space(data_dir),
        _network("NIST", ARCHIVE_URL, "Only a first `emnist-dali prepare` needs it; or name --source PATH."),
        _network(
            "hub of pretrained weights", ENDPOINT, "Take --weights FILE or --no-pretrained where they are asked."
        ),
    ]
    return {"machine": environment(), "checks": [asdict(check) for check in checks]}


def _torch() -> Check:
    """For which device torch is built, and whether torchvision, which timm imports, is built for it, too."""
    cuda, rocm = torch.version.cuda, torch.version.hip
    build = f"for CUDA {cuda}" if cuda else f"for ROCm {rocm}" if rocm else "for CPUs only"
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # an operator that its library for another torch does not have
        advice = "Install torch and torchvision from one index: docs/install.md."
        return Check("torch", f"{torch.__version__}, {build}; torchvision fails ({reason(error)})", advice)
    return Check("torch", f"{torch.__version__}, {build}")


def _gpu() -> Check:
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        count = torch.cuda.device_count()
        others = f", and {count - 1} more" if count > 1 else ""
        if not has_gpu():
            advice = "Install a torch that has kernels for it (docs/troubleshooting.md), or train with --device cpu."
            return Check(
                "GPU", f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, which torch leaves out", advice
            )
        return Check("GPU", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {bf16}, driver {_driver()}{others}")
    driver = _driver()
    if driver:
        built = torch.version.cuda or "no CUDA"
        advice = f"torch is built for {built}: update the driver, or install a torch for this one (pytorch.org)."
        return Check("GPU", f"driver {driver}, but torch sees none", advice)
    return Check("GPU", "none; recipe cpu trains in minutes without")


def _memory() -> Iterator[Check]:
    """What the recipes take of the GPU's memory; nothing without a GPU."""
    if (has := gpu_memory()) is None:
        return
    for name, make in RECIPES.items():
        config = make("balanced")
        fitting = fitting_batch_size(config, has)
        fits = f"Train with --batch-size {fitting}." if fitting else "Train another recipe: no batch fits."
        advice = None if fitting == config.data.batch_size else fits
        yield Check(f"memory for recipe {name}", describe(config, None), advice)


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _engines() -> list[Check]:
    """The same random images through each engine, out of a shard packed for this."""
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28), dtype=np.uint8)
    part = Part(images, np.zeros(64, np.uint8))
    source = Source("random", ("x",), {"train": part, "test": part}, (), official=False)
    with TemporaryDirectory() as folder:
        pack(source, "random", Path(folder) / "random")
        shards = Shards(Path(folder) / "random", "train")
        try:
            expected = _batch(shards, "cpu", "cpu")
        except Exception as error:  # numba's and LLVM's own
            advice = "Reinstall numba; where its cache cannot be written, set NUMBA_CACHE_DIR."
            return [Check("the CPU kernel", f"fails ({reason(error)})", advice)]
        checks = [Check("the CPU kernel", f"works{_kept_where()}")]
        for name, backend, device in (
            ("DALI on the CPU", "dali", "cpu"),
            ("DALI on the GPU", "dali", "cuda"),
            ("images kept on the GPU", "resident", "cuda"),
        ):
            if device == "cuda" and not has_gpu():
                checks.append(Check(name, "not tried: torch has no GPU"))
                continue
            try:
                apart = (_batch(shards, backend, device) - expected).abs() * 255 * STATS.std
            except Exception as error:  # Triton's, DALI's and CUDA's own
                checks.append(Check(name, f"fails ({reason(error)})", "Train with --backend cpu meanwhile."))
                continue
            # DALI's equalize on a GPU rounds 1 in 1,500 of these pixels to the next level, which the resize spreads.
            agrees = apart.max() <= 1.1 and (apart > 0.1).float().mean() <= 0.01
            advice = None if agrees else "Train with --backend cpu, and report this: the engines must agree."
            checks.append(Check(name, f"works, {apart.max():.2g} grey levels from the CPU kernel", advice))
    return checks


def _kept_where() -> str:
    if kernel_cache.FALLBACK is None:
        return ""
    where = f"kept in {kernel_cache.FALLBACK}" if kernel_cache.FALLBACK else "compiled anew by each process"
    return f"; its kernels are {where}, since no other place for them can be written"


def _batch(shards: Shards, backend: str, device: str) -> torch.Tensor:
    batches, pixels = BatchSpec(batch_size=64, train=False), STATS.pixel_spec(shards.shape, 32)
    with Loader(shards, batches, pixels, backend=backend, device=device, threads=1) as loader:
        return next(iter(loader)).images.float().cpu().clone()


def _extras() -> Iterator[Check]:
    for extra in EXTRAS:
        if missing := missing_packages(extra):
            advice = f"pip install 'emnist-dali[{extra}]', for what it is needed for."
            yield Check(f"extra {extra}", f"{', '.join(missing)} missing", advice)
        else:
            yield Check(f"extra {extra}", "installed")


def _data(data_dir: Path) -> Iterator[Check]:
    manifests = sorted([*data_dir.glob(f"*/{MANIFEST}"), *data_dir.glob(f"{DEMO}/*/{MANIFEST}")])
    if not manifests:
        advice = "emnist-dali prepare --split balanced fetches and packs EMNIST; --source glyphs draws a stand-in."
        yield Check("data", f"nothing prepared in {data_dir}", advice)
    for path in manifests:
        name = f"data in {path.parent}"
        try:
            manifest = read_manifest(path.parent)
            verify(path.parent, manifest)
            images = ", ".join(f"{sum(counts):,} {part}" for part, counts in manifest.counts.items())
            yield Check(name, f"{manifest}: {images} images, all hashes match")
        except UserError as error:
            found, _, advice = str(error).rpartition("; ")
            yield Check(name, f"{found}.", advice)
    yield from _without_manifest(data_dir)


def _without_manifest(data_dir: Path) -> Iterator[Check]:
    for folder in sorted({path.parent for path in data_dir.glob("*/*-00000.safetensors")}):
        if not (folder / MANIFEST).exists():
            advice = f"Move {folder} away, and prepare it again."
            yield Check(f"data in {folder}", f"shards, but no {MANIFEST}", advice)


def _space(data_dir: Path) -> Check:
    place = Path(os.path.realpath(data_dir))  # `resolve` gives up on a loop of links
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    advice = None if free >= FREE_GB else f"Free {FREE_GB} GB, or name another --data-dir and --out."
    return Check("disk", f"{free:,.1f} GB free at {there}", advice)


def _network(name: str, url: str, advice: str) -> Check:
    host = urlsplit(url).netloc
    return Check(name, f"{host} answers") if reachable(url) else Check(name, f"{host} does not answer", advice)


def table(found: dict[str, Any]) -> str:
    """The result of `examine` as lines for people."""
    machine = found["machine"]
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in machine["packages"].items())
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['platform']}",
        f"Python {machine['python']}, {packages}",
    ]
    for check in found["checks"]:
        lines.append(f"{'→' if check['advice'] else '✓'} {check['name']}: {check['found']}")
        if check["advice"]:
            lines.append(f"    {check['advice']}")
    return "\n".join(lines)
