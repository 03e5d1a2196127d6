"""The ranks that torchrun started: which one this is, and the collectives that the project needs.

Without torchrun there is one rank, and everything here is free.
"""

import atexit
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .errors import UserError, is_out_of_memory
from .files import printable

if TYPE_CHECKING:
    import torch


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# torchrun's variables count only while this process is in a process group.
_in_group = False


def rank() -> int:
    return _env_int("RANK", 0)


def world_size() -> int:
    return _env_int("WORLD_SIZE", 1)


def local_rank() -> int:
    """The index of this rank on its machine, and of its GPU."""
    return _env_int("LOCAL_RANK", 0)


def local_world_size() -> int:
    return _env_int("LOCAL_WORLD_SIZE", 1)


def _num_nodes() -> int:
    return _env_int("GROUP_WORLD_SIZE", 1)


def _env_int(name: str, default: int) -> int:
    return int(os.environ.get(name, default)) if _in_group else default


def is_main() -> bool:
    """Whether this is the rank that prints, logs and saves."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """The group of all ranks: NCCL for CUDA tensors, gloo for CPU tensors.

    Raises UserError if another rank exits first, if NCCL fails, or if torchrun's environment variables are incomplete
    or invalid.
    """
    global _in_group
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    _check_variables()
    import torch
    from torch import distributed

    _in_group = True
    _die_with_torchrun()
    # NCCL waits for every rank: one without a GPU is told so by `runtime.resolve`.
    gpu = torch.cuda.is_available() and local_world_size() <= torch.cuda.device_count()
    if gpu:
        torch.cuda.set_device(local_rank())
    alone = gpu  # leaves the group without the others
    try:
        # After a restart torchrun's store still holds the addresses of the previous ranks, which a fast rank would
        # pick up. Each machine counts restarts on its own: several need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 instead.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _num_nodes() == 1 else "0"
        store = distributed.PrefixStore(attempt, next(distributed.rendezvous("env://"))[0])
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        device = torch.device("cuda", local_rank()) if gpu else None  # NCCL connects at once, not in the first step
        distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), device_id=device)
        yield
        alone = False
    except SystemExit:
        alone = False
        raise
    except RuntimeError as error:
        if is_out_of_memory(error) or not is_failure(error):
            raise
        if _is_peer_failure(error):
            raise UserError(
                f"Rank {rank()} stopped because another rank exited first; see that rank's error message."
            ) from error
        last = " ".join(str(error).rpartition("Last error:")[2].split())  # below what NCCL says of every error
        raise UserError(
            f"NCCL fails on rank {rank()} ({last[:200]}); NCCL_DEBUG=INFO says more, and Docker needs --ipc=host."
        ) from error
    finally:
        if alone:
            # Destroying waits for the other ranks, which may wait for this one: the error would never be printed.
            atexit.register(_exit_at_once)
        elif distributed.is_initialized():
            distributed.destroy_process_group()
        _in_group = False


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _check_variables() -> None:
    advice = "launch the ranks with torchrun, or unset WORLD_SIZE"
    required = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    optional = (name for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE") if name in os.environ)
    for name in (*required, *optional):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise UserError(f"WORLD_SIZE is set, but {name} is {printable(value)!r}, not a number; {advice}.")
    if not re.fullmatch(r"[\w.:%-]+", os.environ.get("MASTER_ADDR", "")):
        raise UserError(f"WORLD_SIZE is set, but MASTER_ADDR is not a host name or address; {advice}.")
    if not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
        raise UserError(f"WORLD_SIZE is set, but MASTER_PORT is not a port number; {advice}.")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        raise UserError(f"RANK must be below WORLD_SIZE; {advice}.")


def _die_with_torchrun() -> None:
    """Has the kernel send SIGTERM when torchrun exits, however it exits: nothing else would end its ranks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def is_failure(error: BaseException) -> bool:
    """Whether the error is the communication's: another rank has exited, or NCCL fails."""
    is_known = "peer" in str(error) or "DistError" in _names(error)
    return world_size() > 1 and isinstance(error, RuntimeError) and is_known


def _is_peer_failure(failure: RuntimeError) -> bool:
    """NCCL's errors are the others' only where they say so."""
    is_of_nccl = "DistBackendError" in _names(failure)
    return not is_of_nccl or any(word in str(failure) for word in ("peer", "remote process", "ncclRemoteError"))


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


@contextmanager
def local_main_first() -> Iterator[None]:
    """The first rank of each machine runs the block before the machine's other ranks do."""
    if local_rank():
        _barrier()
    yield
    if not local_rank():
        _barrier()


def _barrier() -> None:
    """Among the hosts only: torch's own barrier would go through NCCL."""
    all_reduce_any(False)


def all_reduce_any(*flags: bool) -> list[bool]:
    """Each flag, OR-ed over the ranks. Waits for the other hosts, never for a device."""
    if world_size() == 1:
        return list(flags)
    import torch
    from torch import distributed

    tensor = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.bool().tolist()


def all_reduce_mean(tensor: "torch.Tensor") -> "torch.Tensor":
    """The mean of `tensor` over the ranks; the tensor itself if there is one rank."""
    if world_size() == 1:
        return tensor
    from torch import distributed

    total = tensor.clone()
    distributed.all_reduce(total)
    return total / world_size()


def all_gather(value: Any) -> list[Any]:
    """Every rank's `value` (any picklable object), ordered by rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast_from_main(function: Callable[[], Any]) -> Any:
    """The result of `function` on every rank; only rank 0, whose files others may not see, calls it."""
    if world_size() == 1:
        return function()
    from torch import distributed

    values = [function() if is_main() else None]
    distributed.broadcast_object_list(values)
    return values[0]
