"""Bringing the rows of all ranks together on one, for the few places that need a head whole."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.distributed import ClassShard, Comm


@torch.no_grad()
def gather_rows(local: Tensor, num_classes: int, comm: Comm) -> Tensor | None:
    """The rows of all classes on the first rank of each group that shares them. One gather.

    Args:
        local: (c, ...) this rank's rows.
        num_classes: C, the rows of all ranks together.
        comm: who holds the others.

    Returns:
        (C, ...) on the first rank of ``comm.shard_group``, on the device of ``local``; None on the others.
    """
    if comm.shard_size == 1:
        return local
    most = ClassShard(num_classes, 0, comm.shard_size).rows_per_rank
    padded = local.new_zeros((most, *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(comm.shard_size)] if comm.shard_rank == 0 else None
    # rows in the host's memory beside GPUs: the tensor group may be NCCL's, which takes none
    on_host = local.device.type == "cpu" and comm.shard_size == comm.world_size
    dist.gather(padded, parts, group=comm.agreement.group if on_host else comm.shard_group, group_dst=0)
    if parts is None:
        return None
    return torch.cat(parts)[:num_classes]
