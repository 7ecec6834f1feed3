"""What a pass over the classes is given, and what it yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from lightning_pfc.heads.prototypes import Prototypes
from lightning_pfc.heads.sampling import Sample
from lightning_pfc.losses.base import Loss, Rows, State

# exp(z - reference) stays a normal float32 for every logit in [-bound, bound] when the reference is bound - 60 and the
# bound is at most this; a sum of 10^9 terms stays finite. Then no maximum is needed: one pass and one collective less.
_LARGEST_FIXED_BOUND = 73.0
_CHUNK_ELEMENTS = 1 << 21  # logits of one chunk: 8 MiB of float32; fewer, larger products won over staying in cache
_LARGEST_CHUNK = 4096  # classes


class Sums(NamedTuple):
    """Per row, over all ranks; each (B,) in the compute dtype, the same on every rank."""

    negative_logsumexp: Tensor
    negative_sum: Tensor | None
    target_cosine: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about a pass over the classes but its tensors with gradient.

    Attributes:
        loss, rows, state: the loss and what it knows of the rows.
        sample: the classes of this rank that take part.
        shard_group: the ranks that share the classes; None for one.
        replica_group: the ranks that hold copies of this shard, over which row gradients are summed; None for none.
        memory_budget: bytes of logits kept from forward to backward; chunks beyond it are computed again.
        chunk_size: classes per chunk; None chooses.
        gradient_filter: share of the gradient that may be left out of the backward products; 0 is exact.
        prototypes: what takes the place of the centers; None for the centers themselves.
    """

    loss: Loss
    rows: Rows
    state: State
    sample: Sample
    shard_group: dist.ProcessGroup | None = None
    replica_group: dist.ProcessGroup | None = None
    memory_budget: int = 512 << 20
    chunk_size: int | None = None
    gradient_filter: float = 0.0
    prototypes: Prototypes | None = None

    @property
    def linear(self) -> bool:
        """Whether a negative's logit is just ``scale * cosine``."""
        return self.loss.linear_negatives and self.loss.interclass_filter is None

    @property
    def score_scale(self) -> float:
        """What the kept scores are: ``scale * cosine`` where that is the negatives' logit, else the bare cosine."""
        return self.loss.scale if self.linear else 1.0

    @property
    def reference(self) -> float | None:
        """The fixed reference of the exponentials, where the logits are bounded well enough for one."""
        bound = self.loss.logit_bound
        return None if bound is None or bound > _LARGEST_FIXED_BOUND else bound - 60.0

    def chunks(self, batch: int, num_rows: int) -> Iterator[tuple[int, int]]:
        """Ranges of sampled classes, in order."""
        size = self.chunk_size or chunk_width(batch)
        for low in range(0, num_rows, size):
            yield low, min(low + size, num_rows)


def chunk_width(batch: int) -> int:
    """How many classes make a chunk for a batch of so many rows, where nobody chose."""
    return max(256, min(_LARGEST_CHUNK, _CHUNK_ELEMENTS // max(batch, 1)))
