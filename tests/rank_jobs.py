"""What each rank does in tests/core/test_distributed.py, and how ranks are started.

They are forked from one process that has loaded torch and timm, which takes a process 9 s.
"""

import os
import socket
from collections.abc import Callable
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._dynamo.utils import counters
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from emnist_dali import cli, recipes
from emnist_dali.config import Mixing
from emnist_dali.core import distributed
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.evaluation.inference import evaluation_loader, predict
from emnist_dali.evaluation.metrics import score
from emnist_dali.loading.backends import Batch
from emnist_dali.models.build import build_model
from emnist_dali.runtime import autocast, resolve
from emnist_dali.training import trainer
from emnist_dali.training.build import Training

from .loaders import whole_training
from .training_runs import TINY

# Against hangs only.
SECONDS = 120


class Rank(NamedTuple):
    """A rank that has ended: what its function returned (None where it raised), what it printed, its exit code."""

    result: Any
    out: str
    err: str
    code: int


class Job:
    """`function(*arguments)` on every rank of a group, as torchrun starts them; what they write is in `folder`."""

    def __init__(self, folder: Path, world: int, function: Callable, *arguments: Any) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["emnist_dali.training.session", "tests.rank_jobs"])
        folder.mkdir()
        self.folder, port = folder, free_port()
        self.ranks: list[BaseProcess] = [
            context.Process(target=_rank, args=(folder, rank, world, port, function, arguments))
            for rank in range(world)
        ]
        for process in self.ranks:
            process.start()

    def ended(self) -> list[Rank]:
        for process in self.ranks:
            process.join(SECONDS)
        hanging = [rank for rank, process in enumerate(self.ranks) if process.is_alive()]
        for rank in hanging:
            self.ranks[rank].kill()
        assert not hanging, f"ranks {hanging} hang"
        return [self._rank(rank, process.exitcode) for rank, process in enumerate(self.ranks)]

    def _rank(self, rank: int, code: int) -> Rank:
        result = self.folder / f"{rank}.pt"
        return Rank(
            torch.load(result, weights_only=False) if result.exists() else None,
            *((self.folder / f"{rank}.{name}").read_text() for name in ("out", "err")),
            code,
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(folder: Path, rank: int, world: int, port: int, function: Callable, arguments: tuple) -> None:
    for number, name in ((1, "out"), (2, "err")):
        with (folder / f"{rank}.{name}").open("w") as file:
            os.dup2(file.fileno(), number)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {name: str(value) for name, value in names.items()}
    torch.set_num_threads(1)
    torch.save(function(*arguments), folder / f"{rank}.pt")


def command(*arguments: str) -> None:
    """The command line; an argument may name its rank as {rank}."""
    cli.main([argument.format(rank=os.environ["RANK"]) for argument in arguments], prog_name="emnist-dali")


def make_training(data_dir: Path, **options: Any) -> Training:
    given = {"source": "glyphs", "data_dir": str(data_dir), "device": "cpu", "batch_size": 16}
    config = recipes.cpu("small").override({**TINY, "stem_stride": 1, **given, **options})
    return whole_training(config, Shards(data_dir / "demo" / "small", "train"))


def checks(data_dir: Path) -> dict[str, Any]:
    """All that can be seen of a group of any size."""
    with distributed.process_group():
        return {
            "cpu": _batches(data_dir, "cpu"),
            "resident": _batches(data_dir, "resident"),
            "dali": _batches(data_dir, "dali") if distributed.world_size() < 4 else None,
            "evaluation": {images: _evaluation(data_dir, images) for images in (108, 37, 3)},
            "steps": {accumulation: _steps(data_dir, accumulation) for accumulation in (1, 2)},
            "epoch": _epoch(data_dir),
            "targets": _targets(data_dir),
            "compiled": _compiled(data_dir) if distributed.world_size() == 2 else None,
        }


def _batches(data_dir: Path, backend: str) -> dict[str, Any]:
    """The first three batches of two epochs, and the samples of all their batches."""
    loader = make_training(data_dir, backend=backend, batch_size=64).loader
    batches = []
    with loader:
        for epoch in (0, 1):
            loader.start(epoch)
            batches += [(images.clone(), labels.clone()) for images, labels in islice(loader, 3)]
    samples = [[loader.plan.batch(epoch * len(loader) + i).indices for i in range(len(loader))] for epoch in (0, 1)]
    return {"batches": batches, "samples": samples}


def _evaluation(data_dir: Path, images: int) -> dict[str, Any]:
    """Batches of 16: 108 and 37 images leave a part of one, and with 3 most ranks have none."""
    config = resolve(recipes.cpu("small").override({**TINY, "stem_stride": 1, "device": "cpu", "batch_size": 16}))
    folder = data_dir / "demo" / "small"
    shards = Shards(folder, "test")
    torch.manual_seed(0)
    model = build_model(config.model, 12)
    torch.nn.init.normal_(model.get_classifier().weight)  # so that not all images are of one class
    members = np.arange(108)[:: 108 // images][:images]
    with evaluation_loader(config, shards, statistics(folder, 32), members) as loader:
        return score(predict(model, loader, autocast(config), "test"), shards.manifest.classes)


def _steps(data_dir: Path, accumulation: int) -> tuple[dict, dict]:
    """Weights, and averaged weights, after 50 steps of a model without BatchNorm."""
    training = make_training(data_dir, model="test_efficientnet_gn", accumulation=accumulation, steps=50)
    loop = training.trainer
    with training:
        while loop.step < 50:
            loop.train_epoch(training.loader)
            loop.begin(loop.epoch + 1)
    return loop.model.state_dict(), loop.ema.module.state_dict()


def _epoch(data_dir: Path) -> dict[str, Any]:
    """An epoch of 4 micro-batches a step with BatchNorm: bytes all-reduced by step, statistics before and after."""
    training = make_training(data_dir, accumulation=4)
    loop = training.trainer
    reduced: list[tuple[int, int]] = []

    def hook(group: Any, bucket: GradBucket):
        reduced.append((loop.step, bucket.buffer().nbytes))
        return allreduce_hook(group, bucket)

    if distributed.world_size() > 1:
        loop.parallel.register_comm_hook(None, hook)
    before = []
    real = trainer.distribute_bn
    trainer.distribute_bn = lambda model, *rest, **named: (
        before.append(_statistics(model)),
        real(model, *rest, **named),
    )
    try:
        with training:
            loop.train_epoch(training.loader)
    finally:
        trainer.distribute_bn = real
    return {
        "reduced": reduced,
        "gradients": sum(p.nbytes for p in loop.model.parameters()),
        "before": before,
        "after": [_statistics(loop.model), _statistics(loop.trained)],
    }


def _statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def _targets(data_dir: Path) -> torch.Tensor:
    """(steps, N, classes): mixed targets where every image of a rank is of the class of its number."""
    mixing = Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=1.0, switch=0.5)
    training = make_training(data_dir, mixing=mixing)
    loop = training.trainer
    batch = Batch(torch.randn(8, 1, 32, 32), torch.full((8,), distributed.rank()))
    targets = []
    for loop.micro in range(20):
        targets.append(loop._mix(batch)[1])
    return torch.stack(targets)


def _compiled(data_dir: Path) -> dict[str, Any]:
    """Weights after 9 steps, eager and compiled, and the graphs that were compiled after the warm-up.

    `aot_eager` traces the graphs of torch's own compiler, which would take a minute, and runs them as they are.
    """
    real, torch.compile = torch.compile, partial(torch.compile, backend="aot_eager")
    found: dict[str, Any] = {}
    try:
        for compile in ("off", "on"):
            training = make_training(data_dir, model="test_efficientnet_gn", compile=compile, batch_size=64)
            loop = training.trainer
            loop.warm_up()
            compiled = counters["stats"]["unique_graphs"]
            with training:
                loop.train_epoch(training.loader)
            found[compile] = loop.model.state_dict()
            found["graphs"] = compiled, counters["stats"]["unique_graphs"] - compiled
    finally:
        torch.compile = real
    return found
