"""`train --profile`: where the time of a step goes."""

import gzip
import json
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile, schedule

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..core.files import printable, reason, write_atomic
from ..core.progress import say
from ..runs.file_names import TRACE

# The first steps allocate, choose kernels and fill the queues.
_SKIPPED, _WARM_UP, STEPS = 5, 2, 10
_OPERATORS = 10


def start(config: Config, folder: Path) -> AbstractContextManager[profile | None]:
    """A profiler to call after each step, or None; it writes `folder`/trace.json.gz after STEPS steps.

    A run that ends earlier is profiled as far as it got after the first steps.
    """
    if not config.run.profile or not distributed.is_main():
        return nullcontext()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # without a GPU it reports a spurious error
    on_gpu = config.run.device != "cpu"

    def ready(profiler: profile) -> None:
        path = folder / TRACE
        try:
            with TemporaryDirectory() as scratch:
                plain = Path(scratch, "trace.json")
                profiler.export_chrome_trace(str(plain))
                content = plain.read_bytes()
            json.loads(content)  # on a full disk torch writes half of it without an error
            write_atomic(path, gzip.compress(content))
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{path} could not be written ({reason(error)}); free space there and in {gettempdir()}."
            ) from error
        table = _table(profiler, on_gpu, captured=config.run.compile == "graph")
        say(f"{table}\nTrace: {printable(str(path))}; open it at https://ui.perfetto.dev.")

    return profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
        schedule=schedule(skip_first=_SKIPPED, wait=0, warmup=_WARM_UP, active=STEPS, repeat=1),
        on_trace_ready=ready,
        experimental_config=_all_threads(),
    )


def _all_threads() -> _ExperimentalConfig | None:
    """Has the threads of `slices` profiled; None where torch is too old to do so."""
    with suppress(TypeError):
        return _ExperimentalConfig(profile_all_threads=True)
    return None


def _table(profiler: profile, on_gpu: bool, captured: bool) -> str:
    """The costliest operators by self time on the device; of captured steps, whose kernels have none, the kernels."""
    time_of = (lambda event: event.self_device_time_total) if on_gpu else (lambda event: event.self_cpu_time_total)
    # Kernels are listed again on their own; a profiler step and the optimizer's step are not operators.
    listed = "CUDA" if captured else "CPU"
    operators = [
        event
        for event in profiler.key_averages()
        if event.device_type.name == listed and not event.key.startswith(("ProfilerStep", "Optimizer."))
    ]
    events = sorted(operators, key=time_of, reverse=True)
    total = sum(map(time_of, events)) or 1
    lines = [f"{'operator':<58}{'share':>8}{'ms a call':>11}{'calls':>8}"]
    for event in events[:_OPERATORS]:
        spent = time_of(event)
        lines.append(
            f"{event.key[:56]:<58}{100 * spent / total:>6.1f} %{spent / event.count / 1e3:>11.3f}{event.count:>8}"
        )
    return "\n".join(lines)
