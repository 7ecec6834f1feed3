"""What a sampler may look at in a training step.

Capital letters are global, small ones this rank's part: B rows of the batch, C/c classes, K/k sampled classes, D width
of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.buffers.host_rows import take_rows
from lightning_pfc.distributed.collectives import all_gather_rows, all_reduce
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.shard import ClassShard


@dataclass(frozen=True, eq=False)
class SamplingContext:
    """What a sampler may look at in one training step.

    Attributes:
        targets: (B,) int64, the targets of all ranks, with repeats; the same on every rank.
        labels: (B',) int64, those of the ranks that share the classes: all of them, unless the head is replicated.
        budget: how many classes are to take part, targets included.
        shard: the classes of this rank.
        seed: of the head.
        step: () int64 tensor, training forwards before this one.
        state: what the sampler keeps: the tensors of :meth:`Sampler.initial_state`, and this rank's rows of those of
            :meth:`Sampler.row_state`. To be changed in place.
        dim: D.
        weight: (c, K D) this rank's centers, K of them a class, without gradient; they may be in the host's memory
            while all else is on a GPU.
        embeddings: gives (B, D) unit embeddings of all ranks, without gradient. With several copies of the head an
            all-gather, else free.
        comm: the ranks.
        cache: a dictionary of this rank that is kept from step to step, but not saved.
    """

    targets: Tensor
    labels: Tensor
    budget: int
    shard: ClassShard
    seed: int
    step: Tensor
    state: Mapping[str, Tensor]
    dim: int
    weight: Tensor
    embeddings: Callable[[], Tensor]
    comm: Comm
    cache: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.shard.num_classes

    def centers(self, classes: Tensor) -> Tensor:
        """The centers (n, K D) of any classes (n,) int64, in float32; one all-reduce over the ranks of the head."""
        shard = self.shard
        rows = take_rows(self.weight, (classes - shard.start).clamp(0, shard.num_local - 1), classes.device).float()
        return all_reduce(torch.where(shard.owns(classes)[:, None], rows, 0.0), self.comm.shard_group)

    def best(self, classes: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Of what every rank proposes, the ``count`` classes with the highest scores; the same on every rank.

        One all-gather of ``count`` pairs; with several copies of the head the first copy decides, one broadcast more.

        Args:
            classes: (n,) int64 global ids on this rank, each at most once over all ranks; n may differ by rank.
            scores: (n,) float64; equal scores go to the lower id.
            count: how many.

        Returns:
            Ids and scores, (m,) each with m <= count, best first.
        """
        packet = torch.full((count, 2), -1, dtype=torch.int64, device=classes.device)
        kept = min(count, classes.shape[0])
        scores, place = scores.double().topk(kept)
        packet[:kept, 0] = classes[place]
        packet[:kept, 1] = scores.view(torch.int64)
        packet = all_gather_rows(packet, self.comm.shard_size, self.comm.shard_group)
        if self.comm.replica_group is not None:
            dist.broadcast(packet, dist.get_global_rank(self.comm.replica_group, 0), group=self.comm.replica_group)
        packet = packet[packet[:, 0] >= 0]
        ids, order = packet[:, 0].sort()
        found = packet[:, 1][order].contiguous().view(torch.float64)
        place = found.argsort(descending=True, stable=True)[:count]
        return ids[place], found[place]
