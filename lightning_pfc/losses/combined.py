"""The combined margin cos(m1 theta + m2) - m3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_pfc.ignored import warn_ignored
from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import BeyondPi, MarginGrad, angle, angular_margin, psi, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class CombinedMargin(Loss):
    """Target logit ``s (cos(m1 theta + m2) - m3)``, all three at once (ArcFace, arXiv:1801.07698, eq. 4).

    With ``m1 > 1`` the cosine is SphereFace's psi, which falls on beyond pi. With ``m1 <= 1`` there is no fallback, as
    in InsightFace: where ``m1 theta + m2 > pi``, far from where samples start, the cosine goes on and rises again.

    Args:
        scale: s > 0.
        m1: factor on the angle, > 0 (SphereFace).
        m2: angle added, in radians, >= 0 (ArcFace).
        m3: cosine subtracted, >= 0 (CosFace).
        beyond_pi: with ``m1 > 1``, "psi" or "cosine"; see :class:`~lightning_pfc.losses.SphereFace`. None: psi.
        margin_grad: "exact" differentiates through the margin, as autograd does and as the papers do;
            "straight_through" takes its derivative for one, as InsightFace does since 2022-12.
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    beyond_pi: BeyondPi | None = None
    margin_grad: MarginGrad = "exact"

    _has_factor: ClassVar[bool] = False  # set on the instance
    _keeps_angle: ClassVar[bool] = True

    versioned_defaults: ClassVar[Mapping[str, Mapping[int, Any]]] = {"beyond_pi": {1: "cosine", 2: "psi"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("m1", low=0.0, open_low=True)
        self._check_number("m2", low=0.0)
        if self.m1 <= 1.0:  # else psi falls on
            self._check_angle("m2", factor=self.m1)
        self._check_number("m3", low=0.0)
        self._check_choice("margin_grad", ("exact", "straight_through"))
        self._check_choice("beyond_pi", ("psi", "cosine"))
        # looked at here: a warm-up puts a tensor in the place of m1, which nobody should wait for
        object.__setattr__(self, "_has_factor", self.m1 > 1.0)
        object.__setattr__(self, "_keeps_angle", self.m1 == 1.0)
        if self.beyond_pi == "cosine" and not self._has_factor:
            warn_ignored("beyond_pi='cosine'", f"no angle is stretched beyond pi with m1={self.m1}; give m1 > 1.", 4)

    def with_defaults_of(self, version: int) -> Self:
        """As :class:`Loss`; with ``m1 <= 1`` nothing has changed."""
        return super().with_defaults_of(version) if self._has_factor else self

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s (cos(m1 theta + m2) - m3)``, (B,) -> (B,)."""
        if self._keeps_angle:
            return angular_margin(cosine, self.scale, self.m2, self.m3, self.margin_grad)
        theta = self.m1 * angle(cosine) + self.m2
        falls_on = self._has_factor and self.beyond_pi == "psi"
        modified = (psi(theta) if falls_on else torch.cos(theta)) - self.m3
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)
