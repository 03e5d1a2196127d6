"""A run: from a config to a tested model in its folder, whatever interrupts it on the way."""

import math
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import astuple
from functools import partial
from pathlib import Path
from time import monotonic, process_time
from typing import Any

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..core.files import reason
from ..core.machine import available_cpus, busy_seconds
from ..core.progress import detail, say
from ..core.signals import Interrupt, Stop
from ..evaluation.evaluate import predict_run, summary
from ..evaluation.inference import predict
from ..evaluation.metrics import score
from ..loading.validation import own_validation
from ..runs.calibration import to_metadata
from ..runs.checkpoint import save_weights
from ..runs.folder import RunFolder, check_can_create
from ..runs.predictions import Predictions
from ..runtime import autocast, resolve
from . import profiling, resume, tracking
from .build import Training, build_training
from .optim import MakeOptimizer
from .trainer import TIMING, Augment, DivergedError, Trainer

# The share of the CPUs from which a training on them says that other work slows it down.
OTHER_WORK = 0.25
# Seconds; shorter epochs count as so long, because the kernel counts in ticks of 10 ms.
_TELLING = 2.0
VALIDATION_METRICS = ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy")


def train(
    config: Config,
    state: dict[str, Any] | None = None,
    force: bool = False,
    *,
    test: bool = True,
    augment: Augment | None = None,
    optimizer: MakeOptimizer | None = None,
    log: Callable[[dict[str, Any]], None] = lambda entry: None,
    after_step: Callable[[Trainer], None] = lambda trainer: None,
    after_epoch: Callable[[int, float | None], bool | None] = lambda epochs_done, accuracy: None,
) -> RunFolder:
    """Trains as `config` says and returns the run folder; with `test` the test split is read once, at the end.

    `state` is a checkpoint of the run in `config.run.out` to resume from, with `force` even if the result will
    differ.

    What is your own (docs/extend.md): `augment` gets the images of each batch, (N, 1, S, S), normalized and on the
    device, and returns others; `optimizer` gets parameter groups and the rate, and returns a torch optimizer; `log`
    gets each entry of metrics.jsonl, on the first rank. `after_step` gets the trainer after each step. `after_epoch`
    gets the number of epochs done and the last one's validation accuracy, None where nothing is held out, once its
    checkpoint is written; with True it ends the training for good, which is then tested. What these raise ends the
    run.

    Raises UserError for what a user can cause (data, device, weights, folders, a loss that is not finite, a run that
    another process trains), and SystemExit after SIGTERM, SIGINT or SIGHUP.

    >>> from emnist_dali import recipe, train
    >>> config = recipe("cpu", "digits").override({"source": "glyphs", "epochs": 1, "out": "runs/first"})
    >>> run = train(config)
    >>> run.best
    PosixPath('runs/first/checkpoints/best.safetensors')
    """
    requested, config = config, resolve(config)
    tracking.check_installed(config)
    with ExitStack() as stack:
        if state:
            run = stack.enter_context(RunFolder(Path(config.run.out)))
            run.lock()
            resume.check_unchanged(state)
        else:
            distributed.broadcast_from_main(lambda: check_can_create(config.run.out))
        training = stack.enter_context(
            build_training(config, from_checkpoint=state is not None, augment=augment, optimizer=optimizer)
        )
        config, facts = training.config, resume.facts(training)
        if state:
            _restore(training, state, facts, force)
            if training.trainer.done and any(entry["kind"] == "test" for entry in state["log"]):
                say(f"{run.path} is complete. It stays as it is: nothing was trained, tested or tracked.")
                return run
        if requested.run.compile == "graph" and config.run.compile == "off":
            say(
                "A step is not captured as a CUDA graph: that takes one GPU, one micro-batch a step, one "
                "of our optimizers, no fp16, and no freezing for a time."
            )
        detail(f"On this machine: {_resolved(requested, config)}.")
        training.prefetch()
        compile_seconds = training.trainer.warm_up()
        best = -math.inf
        if state:
            # Best weights newer than the checkpoint belong to a course that is abandoned.
            if distributed.broadcast_from_main(run.best_step) <= state["step"]:
                best = state["best"]
            run.rewind(config, state)
        else:  # only now: what cannot be trained leaves no folder
            run = stack.enter_context(RunFolder.create(config))
        ids, step = (state["trackers"], state["step"]) if state else ({}, 0)
        tracker = stack.enter_context(tracking.start(config, run, str(training.shards.manifest), ids, step))
        constants = {"facts": facts, "config": config.to_dict(), "asked": requested.to_dict()}
        hooks = {"log": log, "after_step": after_step, "after_epoch": after_epoch}
        session = Session(training, run, tracker, constants, best=best, test=test, **hooks)
        if not state:
            run.begin(config, session.state())
        if config.run.compile == "on":
            if not (state and state["log"]):
                session.record({"kind": "compile", "seconds": compile_seconds})
            say(f"Compiled in {compile_seconds:.0f} s.")
        session.train(resumed=state is not None)
        say(f"Run folder: {run.path}")
        return run


def _resolved(requested: Config, config: Config) -> str:
    """What became of the settings that depend on the machine, such as each `auto`."""
    before, after = requested.to_dict(), config.to_dict()
    changed = [
        f"{part}.{name} {value} → {after[part][name]}"
        for part, settings in before.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
        if value != after[part][name]
    ]
    return ", ".join(changed) or "as in the config"


def _restore(training: Training, state: dict[str, Any], facts: dict[str, Any], force: bool) -> None:
    try:
        resume.check(state, training.config, facts, force)
        training.trainer.load(state)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The checkpoint of {training.config.run.out} does not fit its model ({reason(error)}); name another one."
        ) from error


class Session:
    """A run in progress: what is trained, where it is saved, and what ends it.

    `constants` go into every checkpoint; `best` is the best validation accuracy so far.
    """

    def __init__(
        self,
        training: Training,
        run: RunFolder,
        tracker: tracking.Tracking,
        constants: dict[str, Any],
        *,
        best: float,
        test: bool,
        log: Callable[[dict[str, Any]], None],
        after_step: Callable[[Trainer], None],
        after_epoch: Callable[[int, float | None], bool | None],
    ) -> None:
        self.config, self.training, self.trainer = training.config, training, training.trainer
        self.run, self.tracker, self.constants = run, tracker, constants
        self.best, self.test = best, test
        self.log, self.after_step, self.after_epoch = log, after_step, after_epoch
        self.classes = training.shards.manifest.classes
        self._interrupt = Interrupt()
        self._saved = monotonic()
        self._told_of_other_work = False

    def train(self, resumed: bool = False) -> None:
        """To the end, the test included; an interrupted run saves a checkpoint and exits."""
        with self._interrupt, profiling.start(self.config, self.run.path) as self._profiler:
            say(_announcement(self.training, resumed))  # from here on a signal is noted
            try:
                self._train()
            except DivergedError as error:  # also when an interrupted run is saved
                raise DivergedError(
                    f"{error} {self.run.last} is from before: `emnist-dali train --resume {self.run.path} "
                    f"--resume-force --lr {self.config.training.lr / 3:.1g}` resumes from there."
                ) from error

    def _train(self) -> None:
        try:
            while not self.trainer.done:
                self._epoch()
            if self.test:
                self._test()
        except Stop:
            self._save()
            self._exit()

    def _exit(self) -> None:
        signum = self._interrupt.signum or signal.SIGTERM  # another rank's may be unknown here
        say(
            f"Ended by {signal.Signals(signum).name} after step {self.trainer.step}; "
            f"resume with `emnist-dali train --resume {self.run.path}`."
        )
        sys.exit(128 + signum)

    def _epoch(self) -> None:
        """The rest of the trainer's epoch, its validation, and a checkpoint at the start of the next."""
        trainer, busy, own, started = self.trainer, busy_seconds(), process_time(), monotonic()
        entry = trainer.train_epoch(self.training.loader, self._after_step)
        if busy is not None:
            self._tell_of_other_work(busy_seconds() - busy - (process_time() - own), monotonic() - started)
        trainer.check()  # the last update comes after the last loss
        accuracy = float(trainer.epoch)  # with nothing to validate on, the last weights are the best
        predictions = None
        if self.training.validation:
            predictions = self._validate()
            result = score(predictions, self.classes)
            entry |= {f"val_{name}": result[name] for name in VALIDATION_METRICS}
            accuracy = result["accuracy"]
        self.record({"kind": "epoch", **entry})
        self.tracker.log(entry, trainer.step)
        say(_epoch_line(self.config, entry))
        if accuracy > self.best:
            self.best = accuracy
            self._save_best(entry, predictions)
        trainer.begin(trainer.epoch + 1)
        self._save()
        try:
            if self.after_epoch(entry["epochs_done"], entry.get("val_accuracy")):
                trainer.ended = True
                self._save()  # resumed, it does not train on
        finally:  # also where a sweep ends a trial, and after the last epoch without a test
            self._stop_if_signalled()

    def record(self, *entries: dict[str, Any]) -> None:
        """Appends to metrics.jsonl, and tells the user's `log`."""
        self.run.log(*entries)
        if distributed.is_main():
            for entry in entries:
                self.log(deepcopy(entry))  # this one is in every checkpoint

    def _tell_of_other_work(self, cpu_seconds: float, seconds: float) -> None:
        """Once, where other processes took so much of the CPUs in the last `seconds`."""
        share = cpu_seconds / max(seconds, _TELLING) / available_cpus()
        alone = self.config.run.device == "cpu" and distributed.world_size() == 1
        if alone and share > OTHER_WORK and not self._told_of_other_work:
            self._told_of_other_work = True
            say(
                f"Other work took {100 * share:.0f} % of this machine's {available_cpus()} cores in this epoch: "
                "training is faster without it."
            )

    def _validate(self) -> Predictions:
        return predict(
            self.trainer.trained,
            self.training.validation,
            autocast(self.config),
            "validation",
            self._stop_if_signalled,
        )

    def _test(self) -> None:
        self.training.shards.check()  # the test opens the folder anew
        classes, predictions = predict_run(self.run.path, after_batch=self._stop_if_signalled)
        results = {part: score(predicted, classes) for part, predicted in predictions.items()}
        for part, predicted in predictions.items():
            self.run.save_predictions(part, predicted)
        self.record(*({"kind": part, **result} for part, result in results.items()))
        for part, result in results.items():
            say(summary(part, result))
        self._save()  # marks the run as complete
        folder, test = self.training.shards.folder, predictions["test"]
        samples = partial(tracking.samples, self.config, folder, classes, test)
        self.tracker.finish(classes, results, samples, self.trainer.step)

    def _after_step(self) -> None:
        if self._profiler:
            self._profiler.step()
        self.after_step(self.trainer)
        signalled = self._interrupt.signum is not None
        stop, due = distributed.all_reduce_any(signalled, distributed.is_main() and self._checkpoint_is_due())
        if stop:
            raise Stop
        if due:
            self._save()

    def _stop_if_signalled(self) -> None:
        if any(distributed.all_reduce_any(self._interrupt.signum is not None)):
            raise Stop

    def _checkpoint_is_due(self) -> bool:
        every = self.config.run.checkpoint_every
        if every.endswith("s"):
            return monotonic() - self._saved >= int(every[:-1])
        return self.trainer.step % int(every) == 0

    def _save(self) -> None:
        self.run.save_checkpoint(self.state(), self.config.run.keep)
        self._saved = monotonic()

    def _save_best(self, entry: dict[str, Any], predictions: Predictions | None) -> None:
        """With what validation images say about the answers, if there were any."""
        if not distributed.is_main():
            return
        manifest = self.training.shards.manifest
        about = {
            "model": self.config.model.model,
            "classes": self.classes,
            "stats": astuple(self.training.stats),
            "image_size": self.config.data.image_size,
            "data": str(manifest),
            "shape": manifest.shape,
            "converted": manifest.converted,
            "fingerprint": manifest.fingerprint,
            **({"own_validation": True} if own_validation(manifest, self.config.data) else {}),
            **{name: value for name, value in entry.items() if name not in TIMING},
        }
        if predictions:
            # Class weights are between: they make rare classes count more, not as much as others.
            training = self.config.training
            even = bool(training.logit_adjustment or training.balanced_sampling)
            about |= to_metadata(predictions, even=even)
        save_weights(self.run.best, self.trainer.trained, about)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, except the log."""
        return {**self.trainer.state(), "best": self.best, "trackers": self.tracker.ids, **self.constants}


def _announcement(training: Training, resumed: bool) -> str:
    config, ranks = training.config, distributed.world_size()
    held_out = training.validation.plan.samples if training.validation else 0
    has_own = own_validation(training.shards.manifest, config.data)
    own = " (the split's own, so --val-fraction is not used)" if has_own else ""
    where = config.run.device if ranks == 1 else f"{ranks} ranks, the first on {config.run.device}"
    return (
        f"{'Resuming' if resumed else 'Training'} {config.model.model} at {config.data.image_size}×"
        f"{config.data.image_size} on {training.shards.manifest}: {training.loader.plan.samples:,} images, "
        f"{held_out:,} more for validation{own}, on {where}."
    )


def _epoch_line(config: Config, entry: dict[str, Any]) -> str:
    validation = (
        f"val accuracy {100 * entry['val_accuracy']:.2f} %  weighted F1 {entry['val_weighted_f1']:.4f}  "
        if "val_accuracy" in entry
        else ""
    )
    return (
        f"epoch {entry['epochs_done']}/{config.training.epochs}  loss {entry['loss']:.4f}  {validation}"
        f"{entry['images_per_second']:,.0f} img/s  data wait {100 * entry['data_wait']:.1f} %"
    )
