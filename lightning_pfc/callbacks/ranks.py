"""What callbacks of several ranks share: who the ranks are, under any strategy."""

from __future__ import annotations

import lightning as L
import torch.distributed as dist

from lightning_pfc.distributed import Comm
from lightning_pfc.strategies.pfc import PartialFCStrategy


def comm_of(trainer: L.Trainer) -> Comm:
    """The ranks of a Trainer: the strategy's own channel, or one that is made now (then this is a collective)."""
    if isinstance(trainer.strategy, PartialFCStrategy):
        return trainer.strategy.comm
    if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return Comm.single()
    return Comm.from_group()
