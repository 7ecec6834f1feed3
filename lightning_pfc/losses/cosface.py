"""CosFace: an additive cosine margin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State


@dataclass(frozen=True, kw_only=True)
class CosFace(Loss):
    """Target logit ``s (cos(theta) - m)`` (CosFace, arXiv:1801.09414, eq. 4).

    The margin is subtracted from the cosine, so its gradient is exact either way.

    Args:
        scale: s > 0.
        margin: m, a cosine offset (not an angle), >= 0.
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    margin: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=0.0)

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s (cos(theta) - m)``, (B,) -> (B,)."""
        return self.scale * (cosine - self.margin)
