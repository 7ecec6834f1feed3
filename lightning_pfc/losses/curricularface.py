"""CurricularFace: hard negatives weigh little at first and more as training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import MarginGrad, angle, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class CurricularFace(Loss):
    """ArcFace's target; a negative with ``cos_j > cos(theta_y + m)`` becomes ``cos_j (t + cos_j)``.

    CurricularFace, arXiv:2004.00288, eq. 8 to 11. ``t`` is the moving average of the global batch's mean target
    cosine, starts at 0 and is part of the head's state. Needs the targets' cosines before the negatives: one
    all-reduce of (B,). Which negatives are hard is a decision and has no gradient.

    Args:
        scale: s > 0.
        margin: m in radians, >= 0.
        momentum: share of the new batch in ``t``, in (0, 1).
        margin_grad: "exact" or "straight_through", for the target.
        label_smoothing: see :class:`Loss`.
    """

    margin: float = 0.5
    momentum: float = 0.01
    margin_grad: MarginGrad = "exact"

    needs_target_cosine: ClassVar[bool] = True
    linear_negatives: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_angle("margin")
        self._check_number("momentum", low=0.0, high=1.0, open_high=True, open_low=True)
        self._check_choice("margin_grad", ("exact", "straight_through"))
        self._refuse_filter("it weighs hard negatives by itself")

    def initial_state(self, num_classes: int) -> State:
        """``t`` = 0: hard negatives start out damped."""
        return {"t": torch.tensor(0.0, device="cpu")}

    def update_state(self, state: State, batch: BatchInfo) -> None:
        """Move ``t`` towards the mean target cosine of the global batch."""
        assert batch.target_cosine is not None
        state["t"].lerp_(batch.target_cosine.mean().to(state["t"].dtype), self.momentum)

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos_j``, or ``s cos_j (t + cos_j)`` where hard; (B, n) -> (B, n)."""
        assert batch.target_cosine is not None
        bar = torch.cos(angle(batch.target_cosine) + self.margin)
        return self.scale * torch.where(cosine > bar[:, None], cosine * (state["t"] + cosine), cosine)

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos(theta + m)``, (B,) -> (B,)."""
        modified = torch.cos(angle(cosine) + self.margin)
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)
