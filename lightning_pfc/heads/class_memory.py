"""What losses remember of every class: tensors with a row per class, sharded as the centers are, without gradient."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.recomputation import Pass
from lightning_pfc.heads.softmax.blended_centers import BlendedCenters
from lightning_pfc.losses import BatchInfo, Loss


@dataclass(frozen=True, eq=False)
class ClassMemory:
    """The memory of one head.

    Attributes:
        rows: (c, ...) each, by name; written in place.
        blends: of passes whose backward may be to come; what they read of the memory must stay as it was.
        shard: the classes of this rank.
        group: the ranks that share the classes.
    """

    rows: Mapping[str, Tensor]
    blends: list[weakref.ref[BlendedCenters]]
    shard: ClassShard
    group: dist.ProcessGroup | None

    def blended_centers(self, loss: Loss, info: BatchInfo, now: Pass) -> BlendedCenters | None:
        """What takes the place of the centers in training, for a loss that mixes in what it remembers."""
        if now.blended is None and now.training and "feature" in loss.class_buffers(1):
            now.blended = BlendedCenters(self.rows["feature"], loss.blend_weights(self.rows, info))
            self.blends.append(weakref.ref(now.blended))
        return now.blended

    @torch.no_grad()
    def remember(self, loss: Loss, x: Tensor, info: BatchInfo, now: Pass) -> None:
        """Write what a loss remembers of a batch (B, D); backward passes still to come keep the memory as it was."""
        values = loss.updated_class_buffers(x, info) if now.moves_on else {}
        if not values:
            return
        local, owned = self._local(info.labels)
        before, nowhere = self.rows["feature"][local], self.shard.num_local  # what blended centers read
        alive = [(ref, blended) for ref in self.blends if (blended := ref()) is not None]
        for _, blended in alive:
            blended.keep(torch.where(owned, local, nowhere), before)
        self.blends[:] = [ref for ref, _ in alive]
        self.scatter_(values, info.labels)

    @torch.no_grad()
    def gather(self, names: Collection[str], labels: Tensor) -> dict[str, Tensor]:
        """What is remembered of classes (B,) int64, the same on every rank: (B, ...) each, in new storage.

        One all-reduce of (B, ...) for each name.
        """
        local, owned = self._local(labels)
        found = {}
        for name in names:
            own = self.rows[name].index_select(0, local)
            found[name] = all_reduce(torch.where(owned.view(-1, *[1] * (own.dim() - 1)), own, 0), self.group)
        return found

    @torch.no_grad()
    def scatter_(self, values: Mapping[str, Tensor], labels: Tensor) -> None:
        """Put the rows ``values`` (B, ...) of the classes ``labels`` in place; rows of one class must be equal."""
        local, owned = self._local(labels)
        # Sizes must not depend on values: what is not ours repeats the first row that is, or leaves a row as it is.
        first = owned.long().argmax().view(1)  # index_select, since indexing with a tensor of one number reads it
        owned_first, local_first = owned.index_select(0, first), local.index_select(0, first)
        local = torch.where(owned, local, local_first)
        for name, value in values.items():
            rows = self.rows[name]
            value = value.to(rows.dtype)
            shape = (-1, *[1] * (value.dim() - 1))
            kept = rows.index_select(0, local_first)
            spare = torch.where(owned_first.view(shape), value.index_select(0, first), kept)
            rows.index_copy_(0, local, torch.where(owned.view(shape), value, spare))

    def _local(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Local rows (B,) of classes (B,), clamped to those that are here, and whether this rank owns them."""
        shard = self.shard
        return (labels - shard.start).clamp(0, shard.num_local - 1), shard.owns(labels)
