"""The training loop, from top to bottom."""

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from tqdm import tqdm

from . import checkpoint, mixing, order, profiling, tracking
from .config import Config
from .device import autocast, compiled, half_images, keep_freed_memory, resolve
from .errors import UserError
from .evaluation import evaluate_run, evaluation_loader, summary
from .feeds import Batch
from .loader import Loader
from .loss import class_weights, kl_divergence
from .metrics import evaluate
from .model import build_model, channels_last
from .optim import build_optimizer, learning_rate
from .prepare import prepare
from .progress import progress, say
from .run_folder import RunFolder
from .shards import Shards
from .stats import Stats, statistics

# Steps between two readings of the loss, the only moments at which the host waits for the device.
LOG_EVERY = 50
# Steps before a CPU run tells how long it will take.
ESTIMATE_AFTER = 3


def train(config: Config) -> RunFolder:
    """Trains as `config` says, reads the test split once at the end, returns the run folder.

    Raises UserError for what a user can cause: data, device, weights, folders, a loss that is not finite.
    """
    config = resolve(config)
    tune_device(config)
    folder = prepare(config.data.split, config.data.source, config.data.data_dir)
    shards = Shards(folder, "train")
    manifest, labels = shards.manifest, shards.labels()
    members, held_out = order.holdout(labels, config.data.val_fraction, config.training.seed)
    stats = statistics(folder, config.data.image_size)
    train_loader = training_loader(config, shards, stats, members)
    validation_loader = evaluation_loader(config, shards, stats, held_out) if len(held_out) else None
    counts = np.bincount(labels[members], minlength=len(manifest.classes)).tolist()
    trainer = Trainer(config, train_loader, manifest.classes, counts)
    run = RunFolder.create(config)
    track = tracking.start(config, run.path, str(manifest))
    say(
        f"Training {config.model.model} at {config.data.image_size}×{config.data.image_size} on {manifest}: "
        f"{len(members):,} images, {len(held_out):,} more for validation, on {config.run.device}."
    )

    if config.run.compile == "on":
        seconds = trainer.warm_up()
        run.log({"kind": "compile", "seconds": seconds})
        say(f"Compiled in {seconds:.0f} s.")
    best = -math.inf
    with train_loader, validation_loader or nullcontext(), profiling.start(config, run.path) as trainer.profiler:
        for epoch in range(config.training.epochs):
            record = trainer.train_epoch(epoch)
            score = float(epoch)  # with nothing to validate on, the last weights are the best
            if validation_loader:
                result = evaluate(
                    trainer.evaluated, validation_loader, manifest.classes, autocast(config), "validation"
                )
                record |= {f"val_{name}": result[name] for name in ("accuracy", "weighted_f1", "macro_f1")}
                score = result["accuracy"]
            run.log({"kind": "epoch", **record})
            track.log(record, trainer.step)
            say(_epoch_line(config, record))
            if score > best:
                best = score
                about = {"model": config.model.model, "classes": manifest.classes, "stats": (stats.mean, stats.std)}
                about |= {"image_size": config.data.image_size, "data": str(manifest), **record}
                checkpoint.save_weights(run.best, trainer.trained, about)
            place = {"epoch": epoch, "best": best, "wandb": track.id, "fingerprint": manifest.fingerprint}
            checkpoint.save_state(run.last, {**trainer.state(), **place, "config": config.to_dict()})
            if trainer.step == config.training.steps:
                break

    results = evaluate_run(run.path)
    for part, result in results.items():
        run.log({"kind": part, **result})
        say(summary(part, result))
    track.finish(manifest.classes, results)
    say(f"Run folder: {run.path}")
    return run


def tune_device(config: Config) -> None:
    """Settings of this process that make a resolved config's device faster."""
    if config.run.device == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # every batch has the same shape


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A step makes no cycles; a collection would only look through all that torch and timm have loaded."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def training_loader(
    config: Config, shards: Shards, stats: Stats, members: np.ndarray | None = None, threads: int | None = None
) -> Loader:
    """The batches that a resolved config trains on: `members` of `shards`, all of them without it."""
    return Loader(
        shards,
        members=members,
        batch_size=config.data.batch_size,
        size=config.data.image_size,
        stats=stats,
        affine=config.data.affine,
        seed=config.training.seed,
        accumulation=config.training.accumulation,
        backend=config.data.backend,
        device=config.run.device,
        half=half_images(config),
        threads=threads,
    )


class Trainer:
    """What training changes, and the step that changes it; `counts` are the training images of each class."""

    def __init__(self, config: Config, loader: Loader, classes: Sequence[str], counts: Sequence[int]) -> None:
        training = config.training
        self.config, self.loader, self.classes = config, loader, len(classes)
        self.device = torch.device(config.run.device)
        self.autocast = autocast(config)
        self.profiler: torch.profiler.profile | None = None
        torch.manual_seed(training.seed)
        self.model = build_model(config.model, self.classes).to(self.device)
        self.loss = compiled(self._loss, config)
        self.ema = ModelEmaV3(self.model, decay=training.ema, use_warmup=True) if training.ema else None
        self.evaluated = compiled(self.trained, config)
        self.optimizer = build_optimizer(self.model, training)
        # fp16 needs it, and is exempt from the rule against synchronisation: it looks for infinities at each step.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.run.amp == "fp16")
        self.weights = class_weights(counts, classes).to(self.device) if training.class_weights else None
        self.steps_per_epoch = len(loader) // training.accumulation
        self.step = 0

    @property
    def trained(self) -> torch.nn.Module:
        """What is validated, called best and exported: the averaged weights where there are any."""
        return self.ema.module if self.ema else self.model

    def warm_up(self) -> float:
        """Compiles, which the first step would do otherwise, and leaves no trace but that; the seconds it took."""
        started = time.perf_counter()
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        size, share = self.config.data.image_size, self.loader.plan.share
        dtype = torch.float16 if self.loader.half else torch.float32
        images = channels_last(torch.zeros((share, 1, size, size), dtype=dtype, device=self.device))
        targets = torch.full((share, self.classes), 1 / self.classes, device=self.device)
        self.model.train()
        with self.autocast():
            loss = self.loss(images, targets)
        loss.backward()
        self.optimizer.zero_grad()
        for name, buffer in self.model.named_buffers():
            buffer.copy_(kept[name])
        with torch.inference_mode(), self.autocast():
            self.evaluated.eval()(images)
        return time.perf_counter() - started

    @_without_garbage_collection()
    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """One epoch, or what --steps leaves of it; its record. `data_wait` is a share of its `seconds`."""
        training = self.config.training
        self.loader.start(epoch)
        batches = iter(self.loader)
        self.model.train()
        loss_sum = torch.zeros((), device=self.device)
        first, micro, self._waited, started = self.step, 0, 0.0, time.perf_counter()
        batch = self._fetch(batches)
        bar = progress(range(self.steps_per_epoch), description=f"epoch {epoch + 1}", unit=" steps")
        for _ in bar:
            _seed_torch(training.seed, self.step)
            lr = learning_rate(training, self.step, self.steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            for _ in range(training.accumulation):
                images, targets = self._mix(batch, epoch, micro)
                with self.autocast():
                    loss = self.loss(channels_last(images), targets)
                self.scaler.scale(loss / training.accumulation).backward()
                loss_sum += loss.detach()
                micro += 1
                batch = self._fetch(batches)  # while the device works
            self._update()
            done = self.step - first
            if self.step % LOG_EVERY == 0:
                self._check(loss_sum, bar, micro)
            if done == ESTIMATE_AFTER and epoch == 0:
                self._estimate((time.perf_counter() - started) / done)
            if self.profiler:
                self.profiler.step()
            if self.step == training.steps:
                break
        loss = self._check(loss_sum, bar, micro)
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch,
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "images_per_second": micro * self.config.data.batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds": seconds,
        }

    def _loss(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return kl_divergence(self.model(images), targets, self.weights)

    def _fetch(self, batches: Iterator[Batch]) -> Batch | None:
        started = time.perf_counter()
        batch = next(batches, None)
        self._waited += time.perf_counter() - started
        return batch

    def _mix(self, batch: Batch, epoch: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        training = self.config.training
        how = mixing.Mix()
        if training.mixing:
            generator = order.generator(training.seed, order.Stream.MIXING, epoch, micro)
            how = mixing.draw(training.mixing, self.config.data.image_size, generator)
        return mixing.mix(*batch, how, self.classes, training.label_smoothing)

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema:
            self.ema.update(self.model, self.step)

    def _check(self, loss_sum: torch.Tensor, bar: tqdm, batches: int) -> float:
        """The epoch's mean loss so far; waits for the device."""
        loss = loss_sum.item() / batches
        if not math.isfinite(loss):
            raise UserError(f"The loss is {loss} at step {self.step}; lower --lr, or try --amp off.")
        bar.set_postfix(loss=f"{loss:.3f}")
        return loss

    def _estimate(self, seconds: float) -> None:
        steps = self.config.training.steps or self.config.training.epochs * self.steps_per_epoch
        hours = seconds * steps / 3600
        if self.device.type == "cpu" and hours > 1:
            say(f"At this pace the training takes {hours:,.0f} hours on this CPU; --recipe cpu takes minutes.")

    def state(self) -> dict[str, Any]:
        """All that the loop owns, for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "torch_threads": torch.get_num_threads(),
        }


def _seed_torch(seed: int, step: int, rank: int = 0) -> None:
    """Dropout and drop-path of a step depend on nothing but its place."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def _epoch_line(config: Config, record: dict[str, Any]) -> str:
    validation = (
        f"val accuracy {100 * record['val_accuracy']:.2f} %  weighted F1 {record['val_weighted_f1']:.4f}  "
        if "val_accuracy" in record
        else ""
    )
    return (
        f"epoch {record['epoch'] + 1}/{config.training.epochs}  loss {record['loss']:.4f}  {validation}"
        f"{record['images_per_second']:,.0f} img/s  data wait {100 * record['data_wait']:.1f} %"
    )
