"""The combined margin cos(m1 theta + m2) - m3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.losses.base import Loss, MarginGrad, Rows, State, angle, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class CombinedMargin(Loss):
    """Target logit ``s (cos(m1 theta + m2) - m3)``, all three at once (ArcFace, arXiv:1801.07698, eq. 4).

    There is no fallback beyond pi: where ``m1 theta + m2 > pi`` the cosine goes on and rises again.

    Args:
        scale: s > 0.
        m1: factor on the angle, >= 1 (SphereFace).
        m2: angle added, in radians, >= 0 (ArcFace).
        m3: cosine subtracted, >= 0 (CosFace).
        margin_grad: "exact" differentiates through the margin, as autograd does and as the papers do;
            "straight_through" takes its derivative for one, as InsightFace does since 2022-12.
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    margin_grad: MarginGrad = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("m1", low=1.0)
        self._check_number("m2", low=0.0)
        self._check_number("m3", low=0.0)
        self._check_choice("margin_grad", ("exact", "straight_through"))

    def target_logits(self, cosine: Tensor, rows: Rows, state: State) -> Tensor:
        """``s (cos(m1 theta + m2) - m3)``, (B,) -> (B,)."""
        modified = torch.cos(self.m1 * angle(cosine) + self.m2) - self.m3
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)
