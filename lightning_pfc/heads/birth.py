"""The ranks that there are when a head is made, or when one that knows none is used."""

from __future__ import annotations

import torch.distributed as dist

from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.owner import foreign_strategy_message, get_owner
from lightning_pfc.distributed.shard import ClassShard


def world_size() -> int:
    """How many ranks there are at the moment."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def comm_at_birth() -> Comm | None:
    """The ranks that exist when a head is built; None where there is no process group yet."""
    owner = get_owner()
    if owner is not None and world_size() > 1:
        if owner.comm is None:
            raise RuntimeError(foreign_strategy_message(owner.name))
        return owner.comm
    if dist.is_available() and dist.is_initialized():
        return Comm.from_group()
    return None


def comm_after_birth(held: ClassShard) -> Comm | None:
    """The ranks for a head that knows none; None where there is one process.

    Args:
        held: the classes that it holds.

    Raises:
        RuntimeError: for a head of before the process group that our strategy was not given; for a copy out of a
            pickle of another rank, or of another number of them.
    """
    if held.world_size > 1:
        return _comm_of_copy(held)
    if world_size() == 1:
        return None
    owner = get_owner()
    if owner is not None and owner.comm is not None:
        return owner.comm
    raise RuntimeError(
        "This PartialFC was built before the process group and was never given its shard. "
        + foreign_strategy_message(owner.name if owner else "this set-up")
        + " In a script without a Trainer, build the head after torch.distributed.init_process_group."
    )


def _comm_of_copy(held: ClassShard) -> Comm:
    comm = comm_at_birth() or Comm.single()
    if (comm.shard_rank, comm.shard_size) == (held.rank, held.world_size):
        return comm
    raise RuntimeError(
        f"This PartialFC comes out of a pickle (torch.save of a module) of rank {held.rank} of {held.world_size}, with "
        f"the classes {held.start} to {held.stop - 1} of {held.num_classes} alone, and this is rank {comm.shard_rank} "
        f"of {comm.shard_size}. The weights of all ranks' files in a row (torch.cat) are the whole; a checkpoint of "
        "the Trainer, or torch.distributed.checkpoint.save(model.state_dict()), is read by any number of ranks."
    )
