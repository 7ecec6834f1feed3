"""Which slopes of a chunk are worth a place in the backward products."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.heads.chunks import Chunks
from lightning_pfc.heads.sparse_slopes import Slopes, places, smallest_slope


class SlopeFilter:
    """Leaves out slopes that together cannot change the gradient beyond ``plan.gradient_filter``.

    Where a negative's slope is an exponential and nothing else, ``exp(score + height)`` with a height for each row, a
    comparison of the scores tells which matter, before a single exponential is computed.

    Args:
        chunks: of the backward pass.
        logsumexp: (B,) of the negatives' logits.
        grad_logsumexp: (B,).
        grad_target: (B,) slopes of the targets of all ranks.
    """

    def __init__(self, chunks: Chunks, logsumexp: Tensor, grad_logsumexp: Tensor, grad_target: Tensor) -> None:
        plan = chunks.plan
        self.chunks, self.logsumexp, self.grad_target = chunks, logsumexp, grad_target
        self.factor = grad_logsumexp * plan.loss.scale
        self.smallest = smallest_slope(plan.gradient_filter, grad_target, plan.sample.num_sampled)
        self.exponential = plan.linear and not plan.loss.needs_negative_sum and chunks.centers == 1
        self.least_score = (self.smallest.log() - self.factor.abs().log() + logsumexp)[:, None]

    def foreseen(self, low: int, high: int, scores: Tensor, column: Tensor, hit: Tensor) -> Slopes | None:
        """The slopes of a chunk that matter, from its scores (B, n) alone; None where that cannot be, or they are many.

        Args:
            low: first class of the chunk.
            high: the one after its last.
            scores: (B, n) logits.
            column: (B, 1) place of the targets within the chunk.
            hit: (B, 1) whether they are there.
        """
        if not self.exponential:
            return None
        pad = self.chunks.padding(low, high)
        matters = (scores if pad is None else scores + pad) > self.least_score
        matters.scatter_(1, column, hit | matters.gather(1, column))
        found = places(matters)
        if found is None:
            return None
        rows, columns = found
        exponents = scores[rows, columns] - self.logsumexp[rows]
        if pad is not None:
            exponents += pad[columns]
        is_target = (column[rows, 0] == columns) & hit[rows, 0]
        values = torch.where(is_target, self.grad_target[rows], exponents.exp_().mul_(self.factor[rows]))
        return Slopes(rows, columns, values)

    def found(self, slope: Tensor) -> Slopes | None:
        """Those of slopes (B, n) that were computed; None where they are many."""
        if self.exponential:
            return None  # they were too many a moment ago
        found = places(slope.abs() > self.smallest)
        return None if found is None else Slopes(*found, slope[found])
