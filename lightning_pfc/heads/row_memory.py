"""What a loss remembers of every class: tensors with a row per class, sharded as the centers are, without gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.distributed.shard import ClassShard


@torch.no_grad()
def recall(
    memory: Mapping[str, Tensor], labels: Tensor, shard: ClassShard, group: dist.ProcessGroup | None
) -> dict[str, Tensor]:
    """What is remembered of the classes of a batch, the same on every rank.

    Args:
        memory: (c, ...) each, this rank's rows.
        labels: (B,) int64 global class ids.
        shard: the classes of this rank.
        group: the ranks that share the classes. One all-reduce of (B, ...) for each tensor.

    Returns:
        (B, ...) each, in new storage.
    """
    owned = (labels >= shard.start) & (labels < shard.stop)
    local = (labels - shard.start).clamp(0, shard.num_local - 1)
    found = {}
    for name, rows in memory.items():
        own = rows.index_select(0, local)
        found[name] = all_reduce(torch.where(owned.view(-1, *[1] * (own.dim() - 1)), own, 0), group)
    return found


@torch.no_grad()
def remember_(memory: Mapping[str, Tensor], values: Mapping[str, Tensor], labels: Tensor, shard: ClassShard) -> None:
    """Put the rows ``values`` (B, ...) of the classes ``labels`` in place; rows of one class must be equal."""
    owned = (labels >= shard.start) & (labels < shard.stop)
    local = (labels - shard.start).clamp(0, shard.num_local - 1)
    # Sizes must not depend on values: what is not ours repeats the first row that is, or leaves a row as it is.
    first = owned.long().argmax().view(1)  # index_select, since indexing with a tensor of one number reads it
    owned_first, local_first = owned.index_select(0, first), local.index_select(0, first)
    local = torch.where(owned, local, local_first)
    for name, rows in memory.items():
        value = values[name].to(rows.dtype)
        shape = (-1, *[1] * (value.dim() - 1))
        spare = torch.where(owned_first.view(shape), value.index_select(0, first), rows.index_select(0, local_first))
        rows.index_copy_(0, local, torch.where(owned.view(shape), value, spare))
