"""What a training asks of a GPU: the real trainer on one that computes nothing, in a process of `null_gpu.run`."""

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from emnist_dali import recipes
from emnist_dali.config import Config
from emnist_dali.data.emnist import SPLITS
from emnist_dali.evaluation.inference import predict
from emnist_dali.loading.backends import Batch
from emnist_dali.runtime import half_images, resolve
from emnist_dali.training.trainer import Trainer

from .libraries import install
from .null_gpu import Call, Kind, Log

STEPS = 4  # per epoch; fewer than trainer.LOG_EVERY


class OnTheGpu:
    """A loader whose batches are already on the device."""

    def __init__(self, config: Config) -> None:
        size, n = config.data.image_size, config.data.batch_size
        self._shape, self._length = (n, 1, size, size), STEPS * config.training.accumulation
        self._dtype = torch.float16 if half_images(config) else torch.float32
        self._labels = torch.zeros(n, dtype=torch.int64, device="cuda")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._length):
            # New ones each time, as the loader's: in inference mode they are inference tensors.
            yield Batch(torch.empty(self._shape, dtype=self._dtype, device="cuda"), self._labels)

    def start(self, epoch: int, step: int) -> None:
        pass


class Phases:
    """Which part of the step made each call: marks in the log, set where one part ends."""

    def __init__(self, log: Log, trainer: Trainer) -> None:
        self._log, self._loss = log, trainer.loss
        trainer.loss = self._marked_loss
        trainer.optimizer.register_step_pre_hook(lambda *_: self.mark("backward and clip"))
        trainer.optimizer.register_step_post_hook(lambda *_: self.mark("optimizer"))
        self.clear()

    def clear(self) -> None:
        self._log.clear()
        self._marks: list[tuple[int, str]] = []
        self._finished: list[float] = []

    def mark(self, ended: str) -> None:
        self._marks.append((len(self._log), ended))

    def after_step(self) -> None:
        self.mark("average")
        self._finished.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of the fastest step, but the first: what it costs the host."""
        return min(later - earlier for earlier, later in pairwise(self._finished))

    def _marked_loss(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # With several micro-batches the backward of one ends here too.
        self.mark("mix" if not self._marks or self._marks[-1][1] == "average" else "backward and mix")
        loss = self._loss(images, targets)
        self.mark("forward")
        return loss

    def steps(self) -> list[dict[str, list[Call]]]:
        """The calls of each finished step, by phase."""
        calls, steps, phases = self._log.calls(), [], {}
        for (start, _), (stop, name) in pairwise([(0, ""), *self._marks]):
            phases.setdefault(name, []).extend(calls[start:stop])
            if name == "average":
                steps.append(phases)
                phases = {}
        return steps


class Work(TorchDispatchMode):
    """Floating-point operations, and bytes that operations read and write if none are fused."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log, self.flops, self.bytes = log, 0, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, before = kwargs or {}, len(self._log)
        result = operation(*args, **kwargs)
        if len(self._log) > before:  # not for views
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
            if operation.overloadpacket == torch.ops.aten.convolution_backward:
                self.flops += _flops_of_convolution_backward(*args)
            elif count := flop_registry.get(operation.overloadpacket):
                self.flops += count(*args, **kwargs, out_val=result)
        return result


def _flops_of_convolution_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *settings: Any
) -> int:
    """Those of the forward for each gradient; torch's own count takes the weights of grouped ones for dense."""
    of_forward = conv_flop_count(x.shape, weight.shape, gradient.shape)
    return of_forward * sum(settings[-1][:2])


def rehearse(
    log: Log, name: str, split: str = "balanced", settings: dict[str, Any] | None = None, count_work: bool = False
) -> dict[str, Any]:
    """Warm-up, two epochs, evaluations and checkpoints of a recipe, and what they asked of the GPU in a step.

    Of the steps of the second epoch it is the one with most kernels: mixing differs between them. `count_work` adds
    `flops`, and `bytes` as if nothing were fused; with run.compile on, Inductor's bytes of forward and backward.
    """
    torch._dynamo.reset()
    counters.clear()
    metrics.reset()
    torch.cuda.empty_cache()
    config = resolve(recipes.recipe(name, split).override({"pretrained": False, **(settings or {})}))
    classes = SPLITS[split].classes
    trainer = Trainer(config, classes, range(100, 100 + len(classes)), STEPS)
    loader, phases = OnTheGpu(config), Phases(log, trainer)
    torch.cuda.reset_peak_memory_stats()
    modules = [] if config.run.compile == "on" else trainer.model.modules()  # whose hooks would break graphs
    with _other_layouts(modules) as layouts:
        seconds = trainer.warm_up()
    if config.run.compile != "graph":  # whose memory is given out when it is captured
        torch.cuda.reset_peak_memory_stats()
    warm_up = log.calls()
    graphs = counters["stats"]["unique_graphs"]
    for epoch in range(2):
        trainer.begin(epoch)
        phases.clear()
        trainer.train_epoch(loader, phases.after_step)
        steps = phases.steps()
        peak = torch.cuda.max_memory_allocated()
        predict(trainer.trained, loader, trainer.autocast, "")
        trainer.load(trainer.state())
    step = max(steps, key=lambda step: len(_kernels(step)))
    return {
        **_identity(config),
        "warm_up_seconds": seconds,
        "host_seconds": phases.seconds,
        "kernels": len(_kernels(step)),
        "phases": {phase: len(_kernels({phase: calls})) for phase, calls in step.items()},
        "captured": len(_kernels({"": [call for call in warm_up if call.captured]})),
        "names": {phase: Counter(call.name for call in _kernels({phase: calls})) for phase, calls in step.items()},
        "copies": [call.name for step in steps for call in _of(step, Kind.TO_DEVICE, Kind.TO_HOST)],
        "waits": [call.name for step in steps for call in _of(step, Kind.WAIT)],
        "peak": peak,
        "breaks": sum(counters["graph_break"].values()),
        "graphs": graphs,
        "recompiled": counters["stats"]["unique_graphs"] - graphs,
        "elsewhere": _not_on_the_gpu(trainer),
        "not_channels_last": layouts,
        **(_work(log, trainer, loader) if count_work else {}),
    }


def _identity(config: Config) -> dict[str, Any]:
    data, training = config.data, config.training
    return {
        "recipe": config.recipe,
        "split": data.split,
        "model": config.model.model,
        "image_size": data.image_size,
        "batch_size": data.batch_size,
        "accumulation": training.accumulation,
        "optimizer": training.optimizer,
        "compile": config.run.compile,
    }


def _work(log: Log, trainer: Trainer, loader: OnTheGpu) -> dict[str, int]:
    """Of one optimizer step."""
    if trainer.config.run.compile == "on":
        # Counted when it was compiled.
        return {"bytes": metrics.num_bytes_accessed * trainer.config.training.accumulation}
    trainer.begin(2)
    with Work(log) as work:
        trainer.train_epoch(loader)
    return {"flops": work.flops // STEPS, "bytes": work.bytes // STEPS}


def _of(step: dict[str, list[Call]], *kinds: Kind) -> list[Call]:
    return [call for calls in step.values() for call in calls if call.kind in kinds]


def _kernels(step: dict[str, list[Call]]) -> list[Call]:
    """With copies on the device and settings of memory, which a GPU starts too; a replayed graph is one."""
    return _of(step, Kind.KERNEL, Kind.ON_DEVICE, Kind.SET, Kind.REPLAY)


def _not_on_the_gpu(trainer: Trainer) -> list[str]:
    """Parameters, averages and optimizer state on the host."""
    tensors = {**trainer.model.state_dict(), **{f"trained {k}": v for k, v in trainer.trained.state_dict().items()}}
    for number, state in enumerate(trainer.optimizer.state.values()):
        tensors.update({f"{k} of {number}": v for k, v in state.items() if isinstance(v, torch.Tensor)})
    return [name for name, tensor in tensors.items() if not tensor.is_cuda]


@contextmanager
def _other_layouts(modules: Iterable[torch.nn.Module]) -> Iterator[list[str]]:
    """Those of `modules` that meanwhile give images which are not channels-last."""
    found = []

    def look(module: torch.nn.Module, _: Any, output: Any) -> None:
        is_image = isinstance(output, torch.Tensor) and output.dim() == 4
        if is_image and not output.is_contiguous(memory_format=torch.channels_last):
            found.append(type(module).__name__)

    hooks = [module.register_forward_hook(look) for module in modules]
    yield found
    for hook in hooks:
        hook.remove()


def main(cases: str, out: str) -> None:
    """`cases` is a JSON list of the arguments of `rehearse`; writes its results to `out`."""
    warnings.simplefilter("ignore")
    log = Log()
    replaced = install(log)  # noqa: F841  (for as long as it lives)
    results = []
    for case in json.loads(cases):
        results.append(rehearse(log, **case))
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
