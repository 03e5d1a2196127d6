"""The jobs at which loaders are compared with this project's, and the table of what came out."""

import ast
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from emnist_dali.config import Affine, Config
from emnist_dali.core.errors import UserError
from emnist_dali.data.stats import statistics
from emnist_dali.runtime import half_images
from peers import PEERS, Peer
from peers.process import Process
from peers.work import Missing, Work, check
from stage_timers import Setup
from timing import measure_interleaved

IMAGES = 1 << 17  # that the peers get at most; many hold them in memory
# Grey levels, without and with float16: a peer whose images differ more from the reference does other work.
TOLERANCE = {False: 1.0, True: 1.5}
OURS = "emnist-dali"
TRAINING = "training"
PAIRS = 5  # of training with one resident batch and with a peer


def measure(setup: Setup, sizes: Sequence[int], training: Config | None) -> dict[str, dict[str, Any]]:
    """What a document says of each peer: how it shuffles, its lines, how it resumes, and its rate at each of `jobs`.

    The jobs are batches at each of `sizes`, without and with the recipe's warp, and being the loader of `training`
    if that is given.
    Raises UserError if there are fewer images than a batch, or without OpenCV.
    """
    if find_spec("cv2") is None or find_spec("psutil") is None:
        raise UserError("Peers need OpenCV and psutil: pip install -e '.[peers]', or choose other stages.")
    samples = min(len(setup.shards), IMAGES)
    if max(setup.batch_size, training.data.batch_size if training else 0) > samples:
        raise UserError(f"The peers have {samples} images, fewer than a batch; lower --batch-size.")
    results = {name: {"shuffle": peer.shuffle, "lines": lines(peer), "jobs": {}} for name, peer in PEERS.items()}
    with tempfile.TemporaryDirectory(prefix="emnist-dali-bench-") as folder:
        np.save(Path(folder, "images.npy"), setup.shards.images(np.arange(samples)))
        for affine, size in product(dict.fromkeys((None, setup.config.data.affine)), sizes):
            _measure_rates(setup, Path(folder), size, affine, results)
        if training:
            _measure_training(setup, Path(folder), training, results)
    return results


def lines(peer: Peer) -> int:
    """Of code in a peer's module, without comments, docstrings and blank lines."""
    tree = ast.parse(Path(__file__).parent.joinpath("peers", f"{peer.module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return len(ast.unparse(tree).replace("\n\n", "\n").splitlines())


def _work(setup: Setup, folder: Path, name: str, size: int, batch_size: int, affine: Affine | None) -> Work:
    stats = statistics(setup.shards.folder, size)
    return Work(
        name=name.replace(" ", "-"),
        folder=folder,
        shards=setup.shards.folder.absolute(),
        size=size,
        mean=stats.mean,
        std=stats.std,
        batch_size=batch_size,
        device=str(setup.device),
        half=half_images(setup.config),
        threads=setup.threads,
        affine=asdict(affine) if affine else None,
    )


def _measure_rates(setup: Setup, folder: Path, size: int, affine: Affine | None, results: dict) -> None:
    """Adds a job to each of `results`: rates, measured in turns, with what is measured beside them."""
    job = f"{size}×{size}" + (", warped" if affine else "")
    with ExitStack() as stack:
        running: dict[str, Process] = {}
        for name, peer in PEERS.items():
            _progress(f"{job}, setting up {name}")
            work = _work(setup, folder, name, size, setup.batch_size, affine)
            result = results[name]["jobs"][job] = {}
            try:
                process = Process(peer, work)
                stack.callback(process.close)
                result |= {"off_by_levels": check(process.batch(), work), "first_batch_seconds": process.first}
                if "resume" not in results[name]:
                    results[name]["resume"] = _resumes(process, peer, work)
            except Missing as reason:
                result["missing"] = str(reason)
            except RuntimeError as error:
                result["failed"] = str(error).splitlines()[-1]
            else:
                results[name]["disk_bytes"] = process.disk_bytes
                if result["off_by_levels"] <= TOLERANCE[work.half]:  # False for NaN
                    running[name] = process
                else:
                    result["failed"] = f"off by {result['off_by_levels']:.2f} grey levels: not timed"
        _progress(f"{job}, in turns")
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in running}

        def timer(name: str) -> float:
            try:
                measured[name].append(running[name].rate(setup.seconds))
            except RuntimeError as error:  # the others go on
                results[name]["jobs"][job].setdefault("failed", str(error).splitlines()[-1])
                return 0.0
            return measured[name][-1]["images_per_second"]

        rates = measure_interleaved({name: (lambda name=name: timer(name)) for name in running})
    for name, rate in rates.items():
        if "failed" in results[name]["jobs"][job]:
            continue
        results[name]["jobs"][job] |= rate.to_dict() | {
            "cpu_seconds": median(turn["cpu_seconds"] for turn in measured[name]),
            "memory": max(turn["memory"] for turn in measured[name]),
        }


def _resumes(process: Process, peer: Peer, work: Work) -> str:
    """How another process goes on from a saved state: "exact", "other images" than this one, "fails" or "no"."""
    if not process.resumable:
        return "no"
    try:
        with closing(Process(peer, work)) as saved:
            state, indices = saved.resume()
        with closing(Process(peer, work, state)) as resumed:
            return "exact" if resumed.indices() == indices else "other images"
    except RuntimeError:
        return "fails"


def _measure_training(setup: Setup, folder: Path, config: Config, results: dict) -> None:
    """Adds to each of `results` the job of being a training's loader, beside one batch again and again."""
    for name, peer in PEERS.items():
        _progress(f"training with {name}")
        work = _work(setup, folder, name, config.data.image_size, config.data.batch_size, config.data.affine)
        try:
            with closing(Process(peer, work)) as process:
                pairs = process.train(config.to_dict(), setup.seconds, PAIRS)
        except (Missing, RuntimeError) as reason:
            kind = "missing" if isinstance(reason, Missing) else "failed"
            results[name]["jobs"][TRAINING] = {kind: str(reason).splitlines()[-1]}
            continue
        shares = [train / model for model, train in pairs]
        results[name]["jobs"][TRAINING] = {
            "images_per_second": median(train for _, train in pairs),
            "low": min(train for _, train in pairs),
            "high": max(train for _, train in pairs),
            "share": median(shares),
            "shares": shares,
        }


def table(peers: dict[str, dict[str, Any]]) -> str:
    """One table of rates for each job, fastest first, and one of what the jobs have in common."""
    blocks = []
    for job in dict.fromkeys(job for peer in peers.values() for job in peer["jobs"]):
        results = {name: peer["jobs"].get(job, {}) for name, peer in peers.items()}
        timed = {name: result for name, result in results.items() if "images_per_second" in result}
        timed = dict(sorted(timed.items(), key=lambda item: item[1]["images_per_second"], reverse=True))
        last = "of the bound" if job == TRAINING else f"{OURS} / it"
        rows = [f"{job:<34}{'img/s':>12}{'lowest':>12}{'highest':>12}{last:>20}"]
        for name, result in timed.items():
            rates = "".join(f"{result[key]:>12,.0f}" for key in ("images_per_second", "low", "high"))
            if job == TRAINING:
                ratio = f"{100 * result['share']:>18.1f} %"
            elif name == OURS or OURS not in timed:
                ratio = ""
            else:
                ratio = f"{timed[OURS]['images_per_second'] / result['images_per_second']:>18.2f} ×"
            rows.append(f"{name:<34}{rates}{ratio}")
        reasons = {name: result.get("missing") or result.get("failed") for name, result in results.items()}
        rows += [f"{name:<34}{reason}" for name, reason in reasons.items() if reason]
        blocks.append("\n".join(rows))
    blocks.append(_common_table(peers))
    return "\n\n".join(blocks)


def _common_table(peers: dict[str, dict[str, Any]]) -> str:
    """Of the first job: CPU-seconds, the first batch, memory; files, shuffling, resuming, lines of code."""
    heads = ("CPU s / 10⁶", "first, s", "MiB", "disk, MB", "lines")
    rows = [f"{'at the first job':<34}" + "".join(f"{head:>13}" for head in heads) + "  resume        shuffle"]
    for name, peer in peers.items():
        job = next((job for job in peer["jobs"].values() if "cpu_seconds" in job), None)
        if job:
            numbers = (
                job["cpu_seconds"],
                job["first_batch_seconds"],
                job["memory"] / 2**20,
                peer["disk_bytes"] / 1e6,
            )
            cells = [*(f"{number:,.1f}" for number in numbers), str(peer["lines"])]
            rows.append(
                f"{name:<34}{''.join(f'{cell:>13}' for cell in cells)}  {peer['resume']:<14}{peer['shuffle']}"
            )
    return "\n".join(rows)


def _progress(text: str) -> None:
    click.echo(f"… {text}", err=True)
