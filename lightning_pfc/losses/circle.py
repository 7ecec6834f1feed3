"""Circle loss in its classification form: each similarity is weighted by how far it still has to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State


@dataclass(frozen=True, kw_only=True)
class Circle(Loss):
    """Circle loss with class labels (arXiv:2002.10857, eq. 4 to 8): one positive, all else negative.

    ``softplus(log sum_j exp(s a_j (cos_j - m)) - s a_y (cos_y - (1 - m)))`` with the weights
    ``a_j = max(cos_j + m, 0)`` and ``a_y = max(1 + m - cos_y, 0)``, which carry no gradient, as in the paper.

    Args:
        scale: gamma > 0; 256 in the paper.
        margin: the relaxation m in [0, 1).
        label_smoothing: see :class:`Loss`.
    """

    scale: float = 256.0
    margin: float = 0.25

    linear_negatives: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=0.0, high=1.0, open_high=True)
        self._refuse_filter("it weighs hard negatives by itself")

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s a_j (cos_j - m)``, (B, n) -> (B, n)."""
        return self.scale * (cosine.detach() + self.margin).clamp(min=0.0) * (cosine - self.margin)

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s a_y (cos_y - (1 - m))``, (B,) -> (B,)."""
        weight = (1.0 + self.margin - cosine.detach()).clamp(min=0.0)
        return self.scale * weight * (cosine - (1.0 - self.margin))
