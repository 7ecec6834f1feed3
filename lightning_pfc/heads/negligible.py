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
        """Columns of a chunk that are to be kept, ascending; None where copying them out would not pay.

        Args:
            energy: (n,) of each class of the chunk.
        """
        self._left += self._a_class * energy.shape[0]
        weakest = energy.sort()
        held = weakest.values.cumsum(0, dtype=torch.float64)
        count = int(torch.searchsorted(held, self._left, right=True))
        if energy.shape[0] - count > _WORTH_COMPACTING * energy.shape[0]:
            return None
        if count:
            self._left -= float(held[count - 1])
        return weakest.indices[count:].sort().values
