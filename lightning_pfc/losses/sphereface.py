"""SphereFace: a multiplicative angular margin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.losses.base import Loss, MarginGrad, Rows, State, angle, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class SphereFace(Loss):
    """Target logit ``s cos(m theta)`` (SphereFace, arXiv:1704.08063, eq. 4, features normalised, a fixed scale).

    There is no fallback beyond pi: where ``m theta > pi`` the cosine goes on and rises again.

    Args:
        scale: s > 0.
        margin: m, a factor on the angle, >= 1.
        margin_grad: "exact" differentiates through the margin; "straight_through" takes its derivative for one.
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    margin: float = 1.35
    margin_grad: MarginGrad = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=1.0)
        self._check_choice("margin_grad", ("exact", "straight_through"))

    def target_logits(self, cosine: Tensor, rows: Rows, state: State) -> Tensor:
        """``s cos(m theta)``, (B,) -> (B,)."""
        modified = torch.cos(self.margin * angle(cosine))
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)
