"""MagFace: a margin that grows with the embedding's norm, and a regulariser that pulls norms up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_pfc.losses.base import CenterInit, Loss
from lightning_pfc.losses.batch_info import BatchInfo, LogitSums, State
from lightning_pfc.losses.margins import MarginGrad, angle, with_easy_margin, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class MagFace(Loss):
    """Target logit ``s cos(theta + m(a))`` plus ``lambda_g g(a)``, ``a = |x|`` (MagFace, arXiv:2103.06627, eq. 3 to 5).

    ``m(a)`` is linear from ``lower_margin`` at ``lower_norm`` to ``upper_margin`` at ``upper_norm``; ``g(a) = 1/a +
    a/upper_norm^2`` is least at the upper norm. Norms are clamped to that range and carry gradient: it is the one
    loss here whose gradient has a part along the embedding. Nothing is kept, no collective.

    Args:
        scale: s > 0.
        lower_norm, upper_norm: 0 < lower < upper.
        lower_margin, upper_margin: in radians, 0 <= lower <= upper.
        regularizer: lambda_g >= 0.
        easy_margin: leave the margin out where the target's cosine is not above 0, as the authors' published models
            were trained; the paper has no such thing. The logit then rises by the margin's part where the angle passes
            a right one, and the loss falls; its gradient still points to the center, and it trains.
        margin_grad: "exact" or "straight_through" (then the norms' gradient through the margin is lost as well).
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    lower_norm: float = 10.0
    upper_norm: float = 110.0
    lower_margin: float = 0.45
    upper_margin: float = 0.8
    regularizer: float = 35.0
    easy_margin: bool = False
    margin_grad: MarginGrad = "exact"

    center_init: ClassVar[CenterInit] = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("lower_norm", low=0.0, open_low=True)
        self._check_number("upper_norm", low=self.lower_norm, open_low=True)
        self._check_number("lower_margin", low=0.0)
        self._check_number("upper_margin", low=self.lower_margin)
        self._check_angle("upper_margin")
        self._check_number("regularizer", low=0.0)
        self._check_flag("easy_margin")
        self._check_choice("margin_grad", ("exact", "straight_through"))

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos(theta + m(a))``, (B,) -> (B,)."""
        norm = batch.norms.clamp(self.lower_norm, self.upper_norm)
        slope = (self.upper_margin - self.lower_margin) / (self.upper_norm - self.lower_norm)
        modified = torch.cos(angle(cosine) + self.lower_margin + slope * (norm - self.lower_norm))
        if self.easy_margin:
            modified = with_easy_margin(cosine, modified)
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)

    def per_sample_loss(self, target_logits: Tensor, sums: LogitSums, batch: BatchInfo, state: State) -> Tensor:
        """Cross entropy plus ``lambda_g g(a)``, (B,)."""
        loss = super().per_sample_loss(target_logits, sums, batch, state)
        norm = batch.norms.clamp(self.lower_norm, self.upper_norm)
        return loss + self.regularizer * (1.0 / norm + norm / self.upper_norm**2)
