"""Which classes of a chunk the backward products can do without."""

from __future__ import annotations

import torch
from torch import Tensor

_WORTH_COMPACTING = 0.4  # share of live classes above which copying them out costs more than the products saved


class Negligible:
    """Picks the classes that matter least, until what they hold of the gradient reaches what may be left out.

    Energy is the sum of squares of d loss / d cosine. That of the targets alone is a lower bound of the whole, so the
    energy left out is at most ``tolerance ** 2`` of the whole. It is spent chunk by chunk, in proportion to their
    classes; what a chunk leaves over is there for the next. Within a chunk the weakest classes go first, which is the
    largest set that the budget allows.

    Args:
        tolerance: root of the share of the energy that may be left out.
        grad_target: (B,) d loss / d cosine of this rank's targets, 0 for those of other ranks.
        num_classes: of all chunks of this rank.
    """

    def __init__(self, tolerance: float, grad_target: Tensor, num_classes: int) -> None:
        self._a_class = float(grad_target.square().sum()) * tolerance**2 / max(1, num_classes) if tolerance > 0 else 0.0
        self._left = 0.0

    def live(self, energy: Tensor) -> Tensor | None:
        """Columns of a chunk that are to be kept, ascending, at least one; None where copying them out would not pay.

        Args:
            energy: (n,) of each class of the chunk.
        """
        self._left += self._a_class * energy.shape[0]
        weakest = energy.sort()
        held = weakest.values.cumsum(0, dtype=torch.float64)
        count = min(int(torch.searchsorted(held, self._left, right=True)), energy.shape[0] - 1)
        if energy.shape[0] - count > _WORTH_COMPACTING * energy.shape[0]:
            return None
        if count:
            self._left -= float(held[count - 1])
        return weakest.indices[count:].sort().values


def exponential_energy(scores: Tensor, height: Tensor, padding: Tensor | None, *, out: Tensor) -> Tensor:
    """Energy (n,) of each class of a chunk whose slopes are ``exp(scores + height + padding)``.

    Args:
        scores: (B, n) logits.
        height: (B,).
        padding: (n,) or None.
        out: (B, n), overwritten.
    """
    energy = torch.add(2 * height[:, None], scores, alpha=2, out=out).exp_().sum(0)
    return energy if padding is None else energy.mul_((2 * padding).exp())


def select_classes(
    live: Tensor, rows: Tensor, inverse: Tensor | None, scores: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Centers (n, D), inverse lengths (n,) and scores (B, n) of some classes of a chunk."""
    lengths = None if inverse is None else inverse.index_select(0, live)
    return rows.index_select(0, live), lengths, scores.index_select(1, live)
