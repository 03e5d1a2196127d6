"""The training loop: an epoch, from top to bottom."""

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3, distribute_bn
from torch.nn.parallel import DistributedDataParallel

from ..config import Config
from ..core import distributed
from ..core.errors import UserError, is_out_of_memory
from ..core.files import reason
from ..core.progress import progress, say
from ..loading import sampling
from ..loading.backends import Batch
from ..loading.loader import Loader
from ..models.bf16_on_cpus import gradients_checked
from ..models.build import build_model, channels_last
from ..runtime import autocast, compiled, half_images
from . import mixing
from .freezing import freeze, keep_statistics
from .loss import class_weights, kl_divergence, log_frequencies
from .optim import MakeOptimizer, build_optimizer, learning_rate, set_learning_rate
from .slices import Slices, slices_of
from .step_graph import StepGraph

# Steps between two readings of the loss, the only moments at which the host waits for the device.
LOG_EVERY = 50
# The fields of an epoch's entry that differ when the same run is repeated.
TIMING = ("images_per_second", "data_wait", "seconds")
# Steps after which a CPU run estimates how long it will take.
ESTIMATE_AFTER = 3
# From the images (N, 1, S, S) of a batch, normalized and on the device, to others of the same shape and dtype.
Augment = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A step creates no cycles; a collection would take 0.2 s to traverse all that torch and timm have loaded."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class DivergedError(UserError):
    """The loss or a weight is no longer finite."""


class Trainer:
    """What training changes, and the step that changes it.

    `config` is resolved; `counts` are the training images of each class. `augment` changes the images of a batch
    before they are mixed, and `optimizer` makes one from parameter groups and a rate. The trainer is at optimizer
    step `step` of the run: in `epoch`, after `micro` of its micro-batches. With several ranks each calls everything
    here.
    """

    def __init__(
        self,
        config: Config,
        classes: Sequence[str],
        counts: Sequence[int],
        steps_per_epoch: int,
        *,
        augment: Augment | None = None,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        training = config.training
        self.config, self.classes, self.steps_per_epoch = config, len(classes), steps_per_epoch
        self.augment, self.make_optimizer = augment, optimizer
        self.device = torch.device(config.run.device)
        self.autocast = autocast(config)
        torch.manual_seed(training.seed)
        self.model = build_model(config.model, self.classes, config.data.image_size).to(self.device)
        if training.sync_bn:
            self.model = convert_sync_batchnorm(self.model)
        self._is_frozen = training.freeze != "none"
        self._frozen = freeze(self.model, training.freeze) if self._is_frozen else []
        self._build_step()
        self.ema = ModelEmaV3(self.model, decay=training.ema, use_warmup=True) if training.ema else None
        self._averages = _pairs_by_dtype(self.ema.module, self.model) if self.ema else []
        # Only fp16 scales its gradients; for Lion and Muon the host waits for the check for infinities at each step.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.run.amp == "fp16")
        self.weights = class_weights(counts, classes).to(self.device) if training.class_weights else None
        self.adjustment: torch.Tensor | None = None
        if training.logit_adjustment:
            self.adjustment = training.logit_adjustment * log_frequencies(counts, classes).to(self.device)
        self.loss_sum = torch.zeros((), device=self.device)
        self._graph: StepGraph | None = None
        self.step = 0
        self.ended = False  # True ends the training before its last epoch
        self.begin(0)

    def _build_step(self) -> None:
        """What a step needs that depends on which weights it trains."""
        self._train_mode()
        self.parallel = self.model
        if distributed.world_size() > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch will rename the argument
                # Each rank keeps its own statistics until the epoch ends: broadcasting them costs a message a step.
                self.parallel = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.loss = compiled(self._loss, self.config)
        self.optimizer = build_optimizer(self.model, self.config.training, self.make_optimizer)
        self._slices = Slices(self.model, slices) if (slices := self._count_slices()) > 1 else None

    def _train_mode(self) -> None:
        self.model.train()
        if self._is_frozen:
            keep_statistics(self.model, self.config.training.freeze)

    def _thaw(self) -> None:
        """After `training.freeze_epochs` what was frozen is trained, too, by an optimizer that begins anew."""
        after = self.config.training.freeze_epochs
        if after and self.epoch >= after and self._is_frozen:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._is_frozen, self._frozen = False, []
            self._build_step()

    @property
    def slices(self) -> int:
        """How many parts of a batch are trained on side by side: above 1 only on a CPU."""
        return len(self._slices) if self._slices else 1

    def _count_slices(self) -> int:
        run = self.config.run
        if run.device != "cpu" or distributed.world_size() > 1 or run.compile != "off" or run.amp == "fp16":
            return 1
        return slices_of(self.model, self.config.data.batch_size)

    @property
    def done(self) -> bool:
        """Whether nothing is left to train; after the last of `training.steps` its epoch is still to be validated."""
        training = self.config.training
        last = self.epoch >= training.epochs or (self.step >= (training.steps or math.inf) and not self.micro)
        return self.ended or last

    @property
    def trained(self) -> torch.nn.Module:
        """The model that is validated, saved as best and exported: the averaged weights, if there are any."""
        return self.ema.module if self.ema else self.model

    def warm_up(self) -> float:
        """Takes steps that leave no trace, and compiles or captures; returns the seconds it took.

        Raises UserError if the model cannot take these images, or cannot be compiled or captured here.
        """
        started = time.perf_counter()
        size, n = self.config.data.image_size, self.config.data.batch_size // distributed.world_size()
        shape, dtype = (n, 1, size, size), torch.float16 if half_images(self.config) else torch.float32
        if self.augment:
            self._augmented(torch.zeros((2, 1, size, size), dtype=dtype, device=self.device))
        try:
            images = torch.zeros(shape, dtype=dtype, device=self.device)
            targets = torch.full((n, self.classes), 1 / self.classes, device=self.device)
            self._train_mode()
            gc.collect()
            with _without_garbage_collection(), self._unchanged():  # it would free memory in a capture
                if self.config.run.compile == "graph":
                    self._graph = StepGraph(self._step, images, targets)
                else:
                    self._backward(images, targets)
                    self.optimizer.zero_grad()
            bf16_on_cpu = self.device.type == "cpu" and self.config.run.amp == "bf16"
            checked = gradients_checked(self.trained) if bf16_on_cpu else nullcontext()
            with torch.inference_mode(), self.autocast(), checked:
                self.trained.eval()(channels_last(torch.zeros(shape, dtype=dtype, device=self.device)))
        except Exception as error:  # any of timm's models, or a compiler, may raise anything
            if is_out_of_memory(error) or distributed.is_failure(error):
                raise
            how = {"on": "compiled", "graph": "captured"}.get(self.config.run.compile)
            # What fails in a capture fails again when that ends.
            cause = (error.__context__ if how == "captured" else None) or error
            raise UserError(
                f"{self.config.model.model} cannot be trained on images of {size}×{size}"
                f"{f', or cannot be {how} here' if how else ''} ({reason(cause)}); "
                f"change model.model or data.image_size{', or set run.compile off' if how else ''}."
            ) from error
        return time.perf_counter() - started

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Undoes what the block trains, in place; an optimizer's state that it creates becomes zeros."""
        tensors = [*self.model.state_dict().values(), self.loss_sum, *self._optimizer_tensors()]
        kept = [tensor.clone() for tensor in tensors]
        yield
        known = {id(tensor) for tensor in tensors}
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
            for tensor in self._optimizer_tensors():
                if id(tensor) not in known:
                    tensor.zero_()

    def _optimizer_tensors(self) -> list[torch.Tensor]:
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, torch.Tensor)]

    def begin(self, epoch: int) -> None:
        """Moves to the start of `epoch`."""
        self.epoch, self.micro = epoch, 0
        self._thaw()
        self.seconds = self.waited = 0.0
        self.loss_sum.zero_()  # in place: a graph holds its address

    def train_epoch(self, loader: Loader, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Trains for the rest of the epoch, or what `training.steps` leaves of it; returns the epoch's entry.

        `after_step` is called after each optimizer step. Raises DivergedError.
        """
        with _without_garbage_collection(), self._slices.one_thread() if self._slices else nullcontext():
            return self._train_epoch(loader, after_step)

    def _train_epoch(self, loader: Loader, after_step: Callable[[], None]) -> dict[str, Any]:
        training = self.config.training
        done = self.micro // training.accumulation
        left = min(self.steps_per_epoch - done, (training.steps or math.inf) - self.step)
        loader.start(self.epoch, done)
        batches = iter(loader)
        self._train_mode()
        self._last = time.perf_counter()
        batch = self._fetch(batches) if left else None
        bar = progress(
            range(left),
            description=f"epoch {self.epoch + 1}/{training.epochs}",
            total=self._total_steps,
            initial=self.step,
            unit=" steps",
        )
        for i in bar:
            _seed_torch(self.device, training.seed, self.step, distributed.rank())
            set_learning_rate(self.optimizer, learning_rate(training, self.step, self.steps_per_epoch))
            for k in reversed(range(training.accumulation)):
                images, targets = self._mix(batch)
                if self._graph:
                    self._graph(images, targets)
                else:
                    with self._all_reduce(k == 0):
                        self._backward(images, targets)
                self.micro += 1
                batch = self._fetch(batches)  # while the device works
            if not self._graph:
                self._update()
            self.step += 1
            self._average()
            self._clock()
            if self.step % LOG_EVERY == 0:
                bar.set_postfix(loss=f"{self._mean_loss():.3f}")
            if i + 1 == ESTIMATE_AFTER and self.epoch == 0:
                self._estimate(self.seconds / (done + i + 1))
            after_step()
        if distributed.world_size() > 1:
            for model in (self.model, self.ema.module) if self.ema else (self.model,):
                distribute_bn(model, distributed.world_size(), reduce=True)
        loss = self._mean_loss()
        self._clock()
        return {
            "epochs_done": self.epoch + 1,
            "step": self.step,
            "loss": loss,
            "lr": learning_rate(training, self.step - 1, self.steps_per_epoch),
            "images_per_second": self.micro * self.config.data.batch_size / self.seconds,
            "data_wait": self.waited / self.seconds,
            "seconds": self.seconds,
        }

    def _all_reduce(self, now: bool) -> AbstractContextManager:
        """Gradients are all-reduced once a step, in its last micro-batch."""
        return nullcontext() if now or distributed.world_size() == 1 else self.parallel.no_sync()

    def _step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """All that the device does for a step of one micro-batch, but the averaging of weights."""
        self._backward(images, targets)
        self._update()

    def _backward(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        accumulation = self.config.training.accumulation
        if self._slices:
            self.loss_sum += accumulation * self._slices.backward(self._slice_loss, channels_last(images), targets)
            return
        with self.autocast():
            loss = self.loss(channels_last(images), targets)
        self.scaler.scale(loss / accumulation if accumulation > 1 else loss).backward()
        self.loss_sum += loss.detach()

    def _loss(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self._divergence(self.parallel(images), targets)

    def _slice_loss(self, model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return self._divergence(model(images), targets) / self.config.training.accumulation

    def _divergence(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.adjustment is not None:
            logits = logits + self.adjustment
        return kl_divergence(logits, targets, self.weights)

    def _fetch(self, batches: Iterator[Batch]) -> Batch | None:
        started = time.perf_counter()
        batch = next(batches, None)
        self.waited += time.perf_counter() - started
        return batch

    def _clock(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now

    def _mix(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        training = self.config.training
        how = mixing.Mix()
        if training.mixing and self.step < training.mixing.until * training.epochs * self.steps_per_epoch:
            generator = sampling.generator(training.seed, sampling.Stream.MIXING, self.epoch, self.micro)
            how = mixing.draw(training.mixing, self.config.data.image_size, generator)
        images = self._augmented(batch.images) if self.augment else batch.images
        return mixing.mix(images, batch.labels, how, self.classes, training.label_smoothing)

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        """What the user's `augment` makes of them; raises UserError if that is no images like those."""
        made = self.augment(images)
        is_tensor = isinstance(made, torch.Tensor)
        if not is_tensor or (made.shape, made.dtype, made.device) != (images.shape, images.dtype, images.device):
            what = f"{tuple(made.shape)} {made.dtype}" if is_tensor else type(made).__name__
            raise UserError(
                f"augment got {tuple(images.shape)} {images.dtype} and returned {what}; it must return images like "
                "those."
            )
        return made

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _average(self) -> None:
        for averages, tensors in self._averages:
            if averages[0].is_floating_point():
                # The decay of this step is the host's: outside of a graph.
                torch._foreach_lerp_(averages, tensors, 1 - self.ema.get_decay(self.step))
            else:
                torch._foreach_copy_(averages, tensors)

    def _mean_loss(self) -> float:
        """The epoch's mean loss so far, of all ranks; waits for the device."""
        loss = distributed.all_reduce_mean(self.loss_sum).item() / self.micro
        if not math.isfinite(loss):
            raise DivergedError(
                f"The loss is {loss} at step {self.step}, or in the {LOG_EVERY} before it; "
                "lower training.lr, or try run.amp off."
            )
        return loss

    @property
    def _total_steps(self) -> int:
        training = self.config.training
        return min(training.steps or math.inf, training.epochs * self.steps_per_epoch)

    def _estimate(self, seconds: float) -> None:
        hours = seconds * self._total_steps / 3600
        if self.device.type == "cpu" and hours > 1:
            say(f"At this pace the training takes {hours:,.0f} hours on this CPU; --recipe cpu takes minutes.")

    def check(self) -> None:
        """Raises DivergedError if a weight or the loss is not finite; waits for the device."""
        tensors = [self.loss_sum, *self.model.state_dict().values(), *self.trained.state_dict().values()]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            raise DivergedError(
                f"The loss or a weight is not finite at step {self.step}; lower training.lr, or try run.amp off."
            )

    def state(self) -> dict[str, Any]:
        """The loop's whole state, for a checkpoint; `ranks` holds what differs between ranks.

        Random generators and the schedule are functions of the step and have no state. Raises DivergedError.
        """
        self.check()
        local = {"loss_sum": self.loss_sum.cpu(), "model": _buffers(self.model), "trained": _buffers(self.trained)}
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": _with_plain_rate(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "ranks": distributed.all_gather(local),
            **{name: getattr(self, name) for name in _POSITION},
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, before `warm_up`; with other ranks, what differed between them is averaged."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        for name in _POSITION:
            setattr(self, name, state[name])
        self._thaw()  # before the optimizer's state, which is that of the weights that it trains
        groups = [{**group} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, configured in zip(self.optimizer.param_groups, groups, strict=True):
            group.update({name: value for name, value in configured.items() if name not in ("params", "lr")})
            if isinstance(configured["lr"], torch.Tensor):  # one for all groups, which a graph reads
                group["lr"] = configured["lr"].fill_(float(group["lr"]))
        for parameter, state_of_parameter in self.optimizer.state.items():
            for name, tensor in state_of_parameter.items():
                own = self.make_optimizer is not None  # which may keep what it likes
                if isinstance(tensor, torch.Tensor) and not own and tensor.shape not in ((), parameter.shape):
                    raise ValueError(f"{name} of the optimizer has the shape {tuple(tensor.shape)}")
                if isinstance(tensor, torch.Tensor):  # step counters: earlier versions had them on the host
                    state_of_parameter[name] = tensor.to(parameter.device)
        if state["scaler"]:  # another precision, which a user may force, has none
            self.scaler.load_state_dict(state["scaler"])
        saved = state["ranks"]
        local = saved[distributed.rank()] if len(saved) == distributed.world_size() else _mean(saved)
        self.loss_sum.copy_(local["loss_sum"])
        for name, model in (("model", self.model), ("trained", self.trained)):
            model.load_state_dict(local[name], strict=False)


_POSITION = ("epoch", "micro", "step", "seconds", "waited", "ended")


def _buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.cpu() for name, buffer in model.named_buffers()}


def _mean(ranks: list[Any]) -> Any:
    """The mean of the ranks' nested dicts of tensors; of integers the first rank's."""
    first = ranks[0]
    if isinstance(first, dict):
        return {name: _mean([rank[name] for rank in ranks]) for name in first}
    return torch.stack(ranks).mean(0) if first.is_floating_point() else first


def _with_plain_rate(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict, with numbers for learning rates that are tensors."""
    groups = [{**group, "lr": float(group["lr"])} for group in optimizer["param_groups"]]
    return {**optimizer, "param_groups": groups}


def _pairs_by_dtype(model: torch.nn.Module, other: torch.nn.Module) -> list[tuple[list[torch.Tensor], ...]]:
    """The tensors of a model and those of its copy, in lists for one foreach a dtype; they stay the models' own."""
    pairs: dict[torch.dtype, tuple[list[torch.Tensor], ...]] = {}
    for tensor, of_other in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        for into, value in zip(pairs.setdefault(tensor.dtype, ([], [])), (tensor, of_other), strict=True):
            into.append(value)
    return list(pairs.values())


def _seed_torch(device: torch.device, seed: int, step: int, rank: int) -> None:
    """Dropout and drop-path of a step depend only on (seed, step, rank).

    Seeds the two generators that they use: `torch.manual_seed` takes 140 µs for all.
    """
    number = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(number)
