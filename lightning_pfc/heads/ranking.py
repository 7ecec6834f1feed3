"""Where targets stand among all classes, without the logits ever being whole."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.chunks import chunk_cosines, target_cosines
from lightning_pfc.heads.plan import Plan


class TargetRanks(NamedTuple):
    """Where targets stand.

    Attributes:
        rank: (B,) int64, how many of all C classes score strictly higher than the target: 0 is a top-1 hit.
        cosine: (B,) float, the target's cosine (its logit, for a loss without normalisation).
    """

    rank: Tensor
    cosine: Tensor


def rank_targets(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> TargetRanks:
    """Where the targets of ``x`` (B, D) stand among the classes of all ranks. Two all-reduces of (B,)."""
    cosine = target_cosines(x, weight, bias, plan)
    return TargetRanks(all_reduce(count_above(x, weight, bias, cosine, plan), plan.shard_group), cosine)


def count_above(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, plan: Plan) -> Tensor:
    """How many of this rank's classes, but for the target, score above each row's threshold: (B,) int64.

    Args:
        x: (B, D), unit rows for a loss with ``normalize``.
        weight: (c, D).
        bias: (c,) or None.
        threshold: (B,), the target's score.
        plan: says which classes and what the targets are.
    """
    count = threshold.new_zeros(x.shape[0], dtype=plan.sample.columns.dtype)
    for low, high, cosine in chunk_cosines(x, weight, bias, plan):
        above = cosine > threshold[:, None]
        columns = plan.sample.columns
        hit = (columns >= low) & (columns < high)
        # rounding may lift the target above its own score as computed elsewhere
        target = above.gather(1, (columns - low).clamp(0, high - low - 1)[:, None]).squeeze(1)
        count += above.sum(1) - (hit & target).long()
    return count
