"""A run: from a config to a tested model in its folder, whatever ends it on the way."""

import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import astuple, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..core.files import reason
from ..core.progress import say
from ..core.signals import Interrupt, Stop
from ..data.manifest import Manifest
from ..data.prepare import prepare
from ..data.shards import Shards
from ..data.stats import Stats, statistics
from ..evaluation.evaluate import predict_run, summary
from ..evaluation.inference import evaluated_members, evaluation_loader, predict
from ..evaluation.metrics import mistakes, score
from ..loading import sampling
from ..loading.loader import Loader
from ..runs.checkpoint import save_weights
from ..runs.folder import RunFolder, check_out
from ..runs.predictions import Predictions
from ..runtime import autocast, resolve
from . import profiling, resume, tracking
from .trainer import TIMING, DivergedError, Trainer, training_loader, tune_device

# Images of each kind in W&B's table.
SAMPLES = 50


def train(
    config: Config,
    state: dict[str, Any] | None = None,
    force: bool = False,
    *,
    test: bool = True,
    after_epoch: Callable[[int, float], None] = lambda epoch, score: None,
) -> RunFolder:
    """Trains as `config` says, with `test` reads the test split once at the end, returns the run folder.

    `after_epoch` gets each epoch, from 0, and its validation accuracy, once the checkpoint behind it is written; what
    it raises ends the run.

    `state`, a checkpoint of the run in `config.run.out`, is where it goes on; with `force` also where that changes
    the result. Raises UserError for what a user can cause (data, device, weights, folders, a loss that is not
    finite, a run that another process trains), and SystemExit after SIGTERM, SIGINT or SIGHUP.
    """
    asked, config = config, resolve(config)
    tune_device(config)
    with ExitStack() as held:
        if state:
            run = held.enter_context(RunFolder(Path(config.run.out)))
            run.take()
            resume.check_unchanged(state)
        else:
            distributed.broadcast_from_main(lambda: check_out(config.run.out))
        shards, stats = _data(config)
        manifest, labels = shards.manifest, shards.labels()
        members, held_out = sampling.holdout(labels, config.data.val_fraction, config.training.seed)
        train_loader = training_loader(config, shards, stats, members)
        validation_loader = evaluation_loader(config, shards, stats, held_out) if len(held_out) else None
        counts = np.bincount(labels[members], minlength=len(manifest.classes)).tolist()
        # A checkpoint holds the weights already: the hub is not asked again.
        model = replace(config.model, pretrained=False, weights=None) if state else config.model
        trainer = Trainer(replace(config, model=model), train_loader, manifest.classes, counts)
        facts = resume.facts(manifest, train_loader)
        if state:
            try:
                resume.check(state, config, facts, force)
                trainer.load(state)
            except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"The checkpoint of {config.run.out} does not fit its model ({reason(error)}); take another one."
                ) from error
        else:
            compile_seconds = trainer.warm_up()  # before there is a folder: what cannot be trained leaves none
            run = held.enter_context(RunFolder.make(config))
        session = Session(config, asked, trainer, validation_loader, run, manifest, facts, test, after_epoch)
        if state:
            if session.done and any(line["kind"] == "test" for line in state["log"]):
                say(f"{run.path} is complete.")
                return run
            compile_seconds = trainer.warm_up()
            # Best weights from after the checkpoint may be those of a course that is given up.
            session.best = (
                -math.inf if distributed.broadcast_from_main(run.best_step) > state["step"] else state["best"]
            )
            run.go_on(config, state)
        session.track = tracking.start(config, run, str(manifest), state and state["wandb"])
        if not state:
            run.begin(config, session.state())
        if config.run.compile == "on":
            if not run.lines:
                run.log({"kind": "compile", "seconds": compile_seconds})
            say(f"Compiled in {compile_seconds:.0f} s.")
        profiler = profiling.start(config, run.path)
        with session.interrupt, train_loader, validation_loader or nullcontext(), profiler as trainer.profiler:
            say(
                f"{'Going on with' if state else 'Training'} {config.model.model} at "
                f"{config.data.image_size}×{config.data.image_size} on {manifest}: "
                f"{len(members):,} images, {len(held_out):,} more for validation, on {_where(config)}."
            )
            session.train()
        say(f"Run folder: {run.path}")
        return run


def _data(config: Config) -> tuple[Shards, Stats]:
    """The training images, the same for every rank, and their statistics."""
    with distributed.local_main_first():
        folder = prepare(config.data.split, config.data.source, config.data.data_dir, check=config.data.verify_data)
        stats = statistics(folder, config.data.image_size, config.data.equalize)
    shards = Shards(folder, "train")
    if len(shards.manifest.classes) < 2:
        raise UserError(f"{folder} has one class, and a classifier tells two apart; prepare images of more.")
    if len(set(distributed.all_gather(shards.manifest.fingerprint))) > 1:
        raise UserError(f"The ranks have different data in {folder}; prepare every machine from the same source.")
    return shards, stats


class Session:
    """A run under way: what it trains, where that is kept, and what ends it."""

    def __init__(
        self,
        config: Config,
        asked: Config,
        trainer: Trainer,
        validation: Loader | None,
        run: RunFolder,
        manifest: Manifest,
        facts: dict[str, Any],
        test: bool,
        after_epoch: Callable[[int, float], None],
    ) -> None:
        self.config, self.asked, self.facts = config, asked, facts
        self.test, self.after_epoch = test, after_epoch
        self.trainer, self.validation, self.run, self.manifest = trainer, validation, run, manifest
        self.track: tracking.NoTracking | tracking.WandbTracking = tracking.NoTracking()
        self.best = -math.inf
        self.interrupt = Interrupt()
        self._saved = monotonic()
        trainer.after_step = self._after_step

    @property
    def done(self) -> bool:
        training = self.config.training
        # After the last of --steps its epoch is still to be validated.
        last = self.trainer.step >= (training.steps or math.inf) and not self.trainer.micro
        return self.trainer.epoch >= training.epochs or last

    def train(self) -> None:
        """To the end, the test included; where it is ended before, to a checkpoint."""
        try:
            try:
                while not self.done:
                    self._epoch()
                if self.test:
                    self._test()
            except Stop:
                self._save()
                self._exit()
        except DivergedError as error:
            raise DivergedError(
                f"{error} {self.run.last} is from before: `emnist-dali train --resume {self.run.path} "
                f"--resume-force --lr {self.config.training.lr / 3:.1g}` goes on from there."
            ) from error

    def _exit(self) -> None:
        signum = self.interrupt.signum or signal.SIGTERM  # another rank's may be unknown here
        say(
            f"Ended by {signal.Signals(signum).name} after step {self.trainer.step}; "
            f"go on with `emnist-dali train --resume {self.run.path}`."
        )
        sys.exit(128 + signum)

    def _epoch(self) -> None:
        """The rest of the trainer's epoch, its validation, and a checkpoint at the start of the next."""
        trainer, classes = self.trainer, self.manifest.classes
        record = trainer.train_epoch()
        trainer.check()  # the last update comes after the last loss
        accuracy = float(trainer.epoch)  # with nothing to validate on, the last weights are the best
        if self.validation:
            predictions = predict(
                trainer.evaluated,
                self.validation,
                autocast(self.config),
                "validation",
                self._stop_if_asked,
            )
            result = score(predictions, classes)
            record |= {
                f"val_{name}": result[name] for name in ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy")
            }
            accuracy = result["accuracy"]
        self.run.log({"kind": "epoch", **record})
        self.track.log(record, trainer.step)
        say(_epoch_line(self.config, record))
        if accuracy > self.best:
            self.best = accuracy
            stats = trainer.loader.stats
            about = {"model": self.config.model.model, "classes": classes, "stats": astuple(stats)}
            about |= {"image_size": self.config.data.image_size, "data": str(self.manifest)}
            about |= {name: getattr(self.manifest, name) for name in ("shape", "converted", "fingerprint")}
            about |= {name: value for name, value in record.items() if name not in TIMING}
            if distributed.is_main():
                save_weights(self.run.best, trainer.trained, about)
        trainer.begin(trainer.epoch + 1)
        self._save()
        self._stop_if_asked()  # without a test nothing else would hear it after the last epoch
        self.after_epoch(record["epoch"], accuracy)

    def _test(self) -> None:
        self.trainer.loader.plan.shards.check()  # the test opens the folder anew
        classes, predictions = predict_run(self.run.path, after_batch=self._stop_if_asked)
        results = {}
        for part, predicted in predictions.items():
            self.run.save_predictions(part, predicted)
            results[part] = score(predicted, classes)
        self.run.log(*({"kind": part, **result} for part, result in results.items()))
        for part, result in results.items():
            say(summary(part, result))
        self._save()  # tells that the run is complete
        self.track.finish(classes, results, self._samples(predictions["test"]))

    def _samples(self, predictions: Predictions) -> Iterator[tracking.Sample]:
        """The most confident mistakes of the test, and as many images spread over it."""
        spread = torch.linspace(0, len(predictions.labels) - 1, min(SAMPLES, len(predictions.labels))).long()
        places = torch.cat([mistakes(predictions, SAMPLES), spread])
        shards = Shards(self.trainer.loader.plan.shards.folder, "test")
        members = evaluated_members(self.config, np.arange(len(shards)))
        confidence, predicted = predictions.probabilities.max(-1)
        for place, image in zip(places.tolist(), shards.images(members[places.numpy()]), strict=True):
            classes = (self.manifest.classes[label[place]] for label in (predictions.labels, predicted))
            yield tracking.Sample(image, *classes, confidence[place].item())

    def _after_step(self) -> None:
        stop, due = distributed.any_rank(self.interrupt.signum is not None, distributed.is_main() and self._due())
        if stop:
            raise Stop
        if due:
            self._save()

    def _stop_if_asked(self) -> None:
        if any(distributed.any_rank(self.interrupt.signum is not None)):
            raise Stop

    def _due(self) -> bool:
        every = self.config.run.checkpoint_every
        if every.endswith("s"):
            return monotonic() - self._saved >= int(every[:-1])
        return self.trainer.step % int(every) == 0

    def _save(self) -> None:
        self.run.save(self.state(), self.config.run.keep)
        self._saved = monotonic()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, but for the log."""
        return {
            **self.trainer.state(),
            "best": self.best,
            "wandb": self.track.id,
            "facts": self.facts,
            "config": self.config.to_dict(),
            "asked": self.asked.to_dict(),
        }


def _where(config: Config) -> str:
    return (
        config.run.device
        if distributed.world_size() == 1
        else f"{distributed.world_size()} ranks, the first on {config.run.device}"
    )


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
