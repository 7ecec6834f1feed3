"""The ranks that there are when a head is made."""

from __future__ import annotations

import torch.distributed as dist

from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.owner import foreign_strategy_message, get_owner


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
