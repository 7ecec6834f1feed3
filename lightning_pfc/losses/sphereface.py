"""SphereFace: a multiplicative angular margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import BeyondPi, MarginGrad, angle, psi, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class SphereFace(Loss):
    """Target logit ``s psi(m theta)`` (SphereFace, arXiv:1704.08063, eq. 7 and 8, features normalised, a fixed scale).

    ``psi`` is the cosine up to pi and falls on beyond it, so the logit falls with the angle for every m.

    Args:
        scale: s > 0.
        margin: m >= 1, a factor on the angle; 4 in the paper, 1.7 in the authors' later code.
        beyond_pi: "psi", or "cosine": where ``m theta > pi`` the logit rises again, so that for m >= 2 a sample at
            right angles to its center is pushed away from it. None: psi; a head that began with "cosine" under None,
            in a version before, goes on with it.
        margin_grad: "exact" differentiates through the margin; "straight_through" takes its derivative for one.
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    margin: float = 1.35
    beyond_pi: BeyondPi | None = None
    margin_grad: MarginGrad = "exact"

    neutral_margins: ClassVar[Mapping[str, float]] = {"margin": 1.0}
    versioned_defaults: ClassVar[Mapping[str, Mapping[int, Any]]] = {"beyond_pi": {1: "cosine", 2: "psi"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=1.0)
        self._check_choice("beyond_pi", ("psi", "cosine"))
        self._check_choice("margin_grad", ("exact", "straight_through"))

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s psi(m theta)``, (B,) -> (B,)."""
        theta = self.margin * angle(cosine)
        modified = torch.cos(theta) if self.beyond_pi == "cosine" else psi(theta)
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)
