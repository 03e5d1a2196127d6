"""From a config to a training that is ready to begin: data, model, optimizer."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..core.machine import keep_freed_memory
from ..data.prepare import prepare
from ..data.shards import Shards
from ..data.stats import Stats, statistics
from ..evaluation.inference import evaluation_loader
from ..loading.loader import Loader, with_backend
from ..loading.validation import validation_images
from ..models.import_path import is_import_path, trust
from ..runtime import resolve, use_device
from .optim import MakeOptimizer
from .trainer import Augment, Trainer


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `build_training` makes; `config` is resolved, `validation` is None where nothing is held out."""

    config: Config
    shards: Shards
    stats: Stats
    loader: Loader
    validation: Loader | None
    trainer: Trainer

    def prefetch(self) -> None:
        """Begins with the batches that the trainer needs next."""
        if not self.trainer.done:
            self.loader.start(self.trainer.epoch, self.trainer.micro // self.config.training.accumulation)
            self.loader.prefetch()

    def close(self) -> None:
        """Ends the prefetching of both loaders."""
        for loader in filter(None, (self.loader, self.validation)):
            loader.close()

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_training(
    config: Config,
    shards: Shards | None = None,
    *,
    indices: np.ndarray | None = None,
    from_checkpoint: bool = False,
    threads: int | None = None,
    stats: Stats | None = None,
    augment: Augment | None = None,
    optimizer: MakeOptimizer | None = None,
) -> Training:
    """The training that `config` describes, at its first step, on this rank.

    `shards` default to the config's split, prepared where it is missing, and `stats` to theirs. `indices` (n,) are
    the samples to train on; without them the split's validation part is used, or else `data.val_fraction` of the
    part, or a fold, is held out for validation. With `from_checkpoint` the model starts from random weights, which
    the checkpoint replaces. `augment` and `optimizer` are those of `Trainer`. Raises UserError for data, device,
    weights and settings that do not fit.
    """
    config = resolve(config)
    if is_import_path(config.model.model):
        trust(config.model.model)  # its user has asked for a training of it
    elif config.training.freeze != "none" and not config.model.pretrained:
        raise UserError(
            f"training.freeze keeps pretrained weights, and {config.model.model} starts from random ones; name some "
            "with model.weights, or turn on model.pretrained."
        )
    epochs, frozen = config.training.epochs, config.training.freeze_epochs
    if frozen and frozen >= epochs:
        raise UserError(
            f"training.freeze_epochs is {frozen}, and there are {epochs} epochs; make it smaller, or drop it to "
            "freeze throughout."
        )
    if config.run.compile == "graph" and (optimizer or config.training.freeze_epochs):
        config = replace(config, run=replace(config.run, compile="off"))  # a graph holds one step of our optimizers
    _tune_device(config)
    shards = shards or training_shards(config)
    # The first rank's, because their GPUs may differ.
    backend, amp = distributed.broadcast_from_main(
        lambda: (with_backend(config, shards).data.backend, config.run.amp)
    )
    config = replace(config, data=replace(config.data, backend=backend), run=replace(config.run, amp=amp))
    labels, held_out, validation_shards = shards.labels(), None, shards
    if indices is None:
        indices, validation_shards, held_out = validation_images(shards, config.data, config.training.seed)
    with distributed.local_main_first():
        stats = stats or statistics(shards.folder, config.data.image_size, config.data.equalize)
    loader = Loader.from_config(shards, config, indices=indices, stats=stats, threads=threads)
    validation = None
    if held_out is not None and len(held_out):
        validation = evaluation_loader(config, validation_shards, stats, held_out)
    classes = shards.manifest.classes
    counts = np.bincount(labels[indices], minlength=len(classes)).tolist()
    model = replace(config.model, pretrained=False, weights=None) if from_checkpoint else config.model
    steps_per_epoch = len(loader) // config.training.accumulation
    trainer = Trainer(
        replace(config, model=model), classes, counts, steps_per_epoch, augment=augment, optimizer=optimizer
    )
    return Training(config=config, shards=shards, stats=stats, loader=loader, validation=validation, trainer=trainer)


def training_shards(config: Config) -> Shards:
    """The train part of the config's split, prepared where it is missing; the same for every rank."""
    with distributed.local_main_first():
        folder = prepare(config.data.split, config.data.source, config.data.data_dir, check=config.data.verify_data)
    shards = Shards(folder, "train")
    if len(shards.manifest.classes) < 2:
        raise UserError(f"{folder} has one class, and a classifier needs two; prepare images of more.")
    if len(set(distributed.all_gather(shards.manifest.fingerprint))) > 1:
        raise UserError(f"The ranks have different data in {folder}; prepare every machine from the same source.")
    return shards


def _tune_device(config: Config) -> None:
    """Settings of this process for a resolved config's device, which make it faster."""
    use_device(config)
    if config.run.device == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
