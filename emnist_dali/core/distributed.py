"""The processes that torchrun started: which one this is, and what they tell each other.

Without torchrun there is one rank, and everything here costs nothing.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import printable

if TYPE_CHECKING:
    import torch


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Whether this process is in the group: without it what torchrun's variables say does not count.
_in_group = False


def rank() -> int:
    return _number("RANK", 0)


def world_size() -> int:
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This rank's place on its machine, and the number of its GPU."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    return _number("LOCAL_WORLD_SIZE", 1)


def _machines() -> int:
    return _number("GROUP_WORLD_SIZE", 1)


def _number(name: str, alone: int) -> int:
    return int(os.environ.get(name, alone)) if _in_group else alone


def is_main() -> bool:
    """Whether this is the rank that prints, logs and saves."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """The group of all ranks: NCCL between GPUs, gloo for what lies on the host.

    Raises UserError where another rank ends first, and where only some of torchrun's variables are there.
    """
    global _in_group
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    _check_variables()
    import torch
    from torch import distributed

    _in_group = True
    _end_with_torchrun()
    gpu = torch.cuda.is_available() and local_rank() < torch.cuda.device_count()
    if gpu:
        torch.cuda.set_device(local_rank())
    try:
        # After a restart torchrun's store still has the addresses of the ranks that are gone, and a quick rank
        # takes those. Machines count their restarts apart: several need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _machines() == 1 else "0"
        store = distributed.PrefixStore(attempt, next(distributed.rendezvous("env://"))[0])
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size())
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise UserError(
                f"Rank {rank()} ends because another rank has ended; that one's message says why."
            ) from error
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        _in_group = False


def _check_variables() -> None:
    required = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    given = (name for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE") if name in os.environ)
    for name in (*required, *given):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise UserError(
                f"WORLD_SIZE is set, and {name} is {printable(value)!r} and no number: start several ranks by "
                "torchrun, or unset WORLD_SIZE."
            )
    if not re.fullmatch(r"[\w.:%-]+", os.environ.get("MASTER_ADDR", "")):
        raise UserError(
            "WORLD_SIZE is set and MASTER_ADDR is no address: start several ranks by torchrun, or unset it."
        )
    if not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
        raise UserError("WORLD_SIZE is set and MASTER_PORT is no port: start several ranks by torchrun, or unset it.")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        raise UserError("RANK is not below WORLD_SIZE: start several ranks by torchrun, or unset both.")


def _end_with_torchrun() -> None:
    """Has the kernel send SIGTERM when torchrun is gone, however it went: nobody else would end its ranks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def is_lost(error: BaseException) -> bool:
    """Whether it says that another rank has ended."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return world_size() > 1 and isinstance(error, RuntimeError) and ("peer" in str(error) or "DistError" in names)


@contextmanager
def local_main_first() -> Iterator[None]:
    """The first rank of each machine goes through the block before the others of that machine."""
    if local_rank():
        any_rank(False)
    yield
    if not local_rank():
        any_rank(False)


def any_rank(*flags: bool) -> list[bool]:
    """Each flag, or-ed over the ranks. The host waits for the other hosts, and for no device."""
    if world_size() == 1:
        return list(flags)
    import torch
    from torch import distributed

    tensor = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.bool().tolist()


def all_reduce_mean(tensor: "torch.Tensor") -> "torch.Tensor":
    """The mean of a tensor over the ranks; may be the tensor itself."""
    if world_size() == 1:
        return tensor
    from torch import distributed

    total = tensor.clone()
    distributed.all_reduce(total)
    return total / world_size()


def all_gather(value: Any) -> list[Any]:
    """Every rank's `value`, by rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast_from_main(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, which alone calls it: other machines may not see its files."""
    if world_size() == 1:
        return function()
    from torch import distributed

    values = [function() if is_main() else None]
    distributed.broadcast_object_list(values)
    return values[0]
