"""Where targets stand among all classes, without the logits ever being whole."""

from __future__ import annotations

from torch import Tensor

from lightning_pfc.heads.chunks import chunk_cosines
from lightning_pfc.heads.plan import Plan


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
