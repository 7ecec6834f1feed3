"""ArcFace: an additive angular margin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import MarginGrad, angular_margin


@dataclass(frozen=True, kw_only=True)
class ArcFace(Loss):
    """Target logit ``s cos(theta + m)`` (ArcFace, arXiv:1801.07698, eq. 3).

    There is no fallback beyond pi: where ``theta + m > pi`` the cosine goes on and rises again (at m = 0.5 for
    cos theta < -0.878).

    Args:
        scale: s > 0.
        margin: m in radians, >= 0 and below pi/2: samples start at a right angle.
        margin_grad: "exact" differentiates through the margin, as autograd does and as the paper does;
            "straight_through" takes its derivative for one, as InsightFace does since 2022-12.
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    margin: float = 0.5
    margin_grad: MarginGrad = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_angle("margin")
        self._check_choice("margin_grad", ("exact", "straight_through"))

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos(theta + m)``, (B,) -> (B,)."""
        return angular_margin(cosine, self.scale, self.margin, 0.0, self.margin_grad)
