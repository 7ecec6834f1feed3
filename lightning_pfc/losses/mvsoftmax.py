"""MV-Softmax: negatives that come too close to the target weigh more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_pfc.ignored import warn_ignored
from lightning_pfc.losses.base import CenterInit, Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import MarginGrad, angle, with_easy_margin, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class MVSoftmax(Loss):
    """Target with a margin, ``s f(m, theta_y)``; a negative with ``cos_j > f(m, theta_y)`` is re-weighted.

    MV-Softmax (mis-classified vector guided), arXiv:1912.00833, eq. 6 to 9: its exponential is multiplied by
    ``exp(s (t - 1) (cos_j + 1))`` ("adaptive") or ``exp(s (t - 1))`` ("fixed"), so its logit is
    ``s (t cos_j + t - 1)`` or ``s (cos_j + t - 1)``; t = 1 changes nothing. Needs the targets' cosines before the
    negatives: one all-reduce of (B,). Which negatives are hard is a decision and has no gradient.

    Args:
        scale: s > 0.
        margin: m >= 0: a cosine offset for "additive", radians for "angular".
        margin_type: "additive" (MV-AM-Softmax, f = cos theta - m) or "angular" (MV-Arc-Softmax, f = cos(theta + m)).
        hard_weight: t >= 1. None: 1.2, as in the authors' code; a head that began with 1.12 under None, in a version
            before, goes on with it.
        weighting: "adaptive" or "fixed".
        easy_margin: leave the margin out where the target's cosine is not above 0, as the authors' code does unless
            told otherwise; the paper has no such thing. The logit then rises by the margin where the angle passes a
            right one, and the loss falls; its gradient still points to the center, and it trains.
        margin_grad: "exact" or "straight_through", for the target.
        label_smoothing: see :class:`Loss`.
    """

    scale: float = 32.0
    margin: float = 0.35
    margin_type: Literal["additive", "angular"] = "additive"
    hard_weight: float | None = None
    weighting: Literal["adaptive", "fixed"] = "adaptive"
    easy_margin: bool = False
    margin_grad: MarginGrad = "exact"

    center_init: ClassVar[CenterInit] = "unit"
    versioned_defaults: ClassVar[Mapping[str, Mapping[int, Any]]] = {"hard_weight": {1: 1.12, 2: 1.2}}
    needs_target_cosine: ClassVar[bool] = True
    linear_negatives: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=0.0)
        if self.margin_type == "angular":
            self._check_angle("margin")
        self._check_number("hard_weight", low=1.0)
        self._check_flag("easy_margin")
        self._check_choice("margin_type", ("additive", "angular"))
        self._check_choice("weighting", ("adaptive", "fixed"))
        self._check_choice("margin_grad", ("exact", "straight_through"))
        self._refuse_filter("it weighs hard negatives by itself")
        if self.margin_grad != "exact" and self.margin_type == "additive":
            way_out = "the derivative of an additive margin is one anyway; give margin_type='angular'."
            warn_ignored(f"margin_grad={self.margin_grad!r}", way_out, 4)

    def _with_margin(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin if self.margin_type == "additive" else torch.cos(angle(cosine) + self.margin)

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos_j``, re-weighted where hard; (B, n) -> (B, n)."""
        assert batch.target_cosine is not None
        weight = self.hard_weight
        assert weight is not None
        extra = weight - 1.0
        harder = cosine * weight + extra if self.weighting == "adaptive" else cosine + extra
        return self.scale * torch.where(cosine > self._with_margin(batch.target_cosine)[:, None], harder, cosine)

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s f(m, theta_y)``, (B,) -> (B,)."""
        modified = self._with_margin(cosine)
        if self.easy_margin:
            modified = with_easy_margin(cosine, modified)
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)
