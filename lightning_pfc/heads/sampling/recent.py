"""The most recently seen classes: a queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_pfc.heads.sampling.base import Sampler
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.sampled_classes import distinct


@dataclass(frozen=True, kw_only=True)
class Recent(Sampler):
    """The most recently seen classes (a FIFO queue); what is left of the budget is drawn uniformly.

    The center of a class that was a target a few steps ago fits the current network, that of a class last drawn an
    epoch ago does not. Dynamic Class Queue (arXiv:2105.11113), Prototype Memory (arXiv:2105.02103) and Faster
    Face Classification (arXiv:2105.10375) keep nothing but such a queue, with prototypes made of recent embeddings in
    place of learned centers. Here the queue chooses among learned centers; ``loss=vpl`` blends recent embeddings in.

    Of classes that were targets in the same step, those with the lower id stay longer. Costs a selection in c numbers
    a step, O(c), and one all-gather of K pairs; 4 bytes a class, part of the checkpoint.

    Args:
        share: of the budget beyond the targets that the queue fills, in [0, 1]; the rest is drawn uniformly, as are the
            places of the queue that are still empty.
        correction: see :class:`Sampler`; not possible, since what is not in the queue is never drawn.
    """

    share: float = 1.0

    fill_with_uniform: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("share", 0.0, 1.0)

    def row_state(self, embedding_dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """``seen``: the last step in which a class was a target, counted from 1; 0 is never."""
        return {"seen": ((), torch.int32)}

    def classes(self, context: SamplingContext) -> Tensor:
        """The targets, and the classes that were targets most recently."""
        seen, shard = context.state["seen"], context.shard
        targets = distinct(context.targets)
        seen[shard.local_rows(targets)] = (context.step + 1).to(seen.dtype)
        length = targets.shape[0] + round(self.share * max(0, context.budget - targets.shape[0]))
        local = _latest(seen, min(length, shard.num_local))
        return context.best(shard.start + local, seen[local].double(), length)[0]


def _latest(seen: Tensor, count: int) -> Tensor:
    """Rows (n,) of the ``count`` highest positive values, n <= count; of equal ones those that come first."""
    if count == 0:
        return seen.new_empty(0, dtype=torch.int64)
    last = int(seen.topk(count, sorted=False).values.min())
    above = (seen > last).nonzero().squeeze(1)
    if last == 0:
        return above
    level = (seen == last).nonzero().squeeze(1)
    return torch.cat([above, level[: count - above.shape[0]]])
