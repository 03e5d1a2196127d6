"""The processes that torchrun started: which one this is, and what they tell each other.

Without torchrun there is one rank, and everything here costs nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    import torch


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This rank's place on its machine, and the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _machines() -> int:
    return int(os.environ.get("GROUP_WORLD_SIZE", 1))


def main() -> bool:
    """Whether this is the rank that prints, logs and saves."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """The group of all ranks: NCCL between GPUs, gloo for what lies on the host.

    Raises UserError where another rank ends first.
    """
    if world() == 1:
        yield
        return
    import torch
    from torch import distributed

    gpu = torch.cuda.is_available() and local_rank() < torch.cuda.device_count()
    if gpu:
        torch.cuda.set_device(local_rank())
    try:
        # After a restart torchrun's store still has the addresses of the ranks that are gone, and a quick rank
        # takes those. Machines count their restarts apart: several need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _machines() == 1 else "0"
        store = distributed.PrefixStore(attempt, next(distributed.rendezvous("env://"))[0])
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank(), world_size=world())
        yield
    except RuntimeError as error:
        if "peer" in str(error) or isinstance(error, distributed.DistError):
            raise UserError(
                f"Rank {rank()} ends because another rank has ended; that one's message says why."
            ) from error
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


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
    if world() == 1:
        return list(flags)
    import torch
    from torch import distributed

    tensor = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.bool().tolist()


def mean(tensor: "torch.Tensor") -> "torch.Tensor":
    """The mean of a tensor over the ranks; may be the tensor itself."""
    if world() == 1:
        return tensor
    from torch import distributed

    total = tensor.clone()
    distributed.all_reduce(total)
    return total / world()


def gathered(value: Any) -> list[Any]:
    """Every rank's `value`, by rank."""
    if world() == 1:
        return [value]
    from torch import distributed

    values = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def from_main(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, which alone calls it: other machines may not see its files."""
    if world() == 1:
        return function()
    from torch import distributed

    values = [function() if main() else None]
    distributed.broadcast_object_list(values)
    return values[0]
