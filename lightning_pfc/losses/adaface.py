"""AdaFace: a margin that follows the quality of the image, read from the norm of its embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_pfc.losses.base import CenterInit, Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import MarginGrad, angle, with_margin_grad

_NORM_RANGE = (1e-3, 100.0)
_EPS = 1e-3


@dataclass(frozen=True, kw_only=True)
class AdaFace(Loss):
    """Target logit ``s (cos(theta - m z) - (m z + m))`` (AdaFace, arXiv:2204.00964, eq. 16 to 20).

    ``z = clip((|x| - mean) / (std / h), -1, 1)`` is the quality of the row: an angular margin for poor images (z =
    -1: m, and no additive part), an additive one for good images. ``mean`` and ``std`` are moving averages over the
    global batch, part of the head's state; norms carry no gradient. Collectives: none of its own.

    As in the paper's code, ``theta - m z`` is kept within (0, pi).

    Args:
        scale: s > 0.
        margin: m in radians, >= 0; also the additive margin.
        h: how much of the norms' spread is used, > 0; the paper's best is 0.333.
        momentum: share of the new batch in the averages, in (0, 1).
        margin_grad: "exact", or "straight_through" as CVLface trains it.
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    margin: float = 0.4
    h: float = 0.333
    momentum: float = 0.01
    margin_grad: MarginGrad = "exact"

    center_init: ClassVar[CenterInit] = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=0.0)
        self._check_number("h", low=0.0, open_low=True)
        self._check_number("momentum", low=0.0, high=1.0, open_high=True, open_low=True)
        self._check_choice("margin_grad", ("exact", "straight_through"))

    def initial_state(self, num_classes: int) -> State:
        """``mean`` 20 and ``std`` 100, as the paper's code begins."""
        return {"mean": torch.tensor(20.0, device="cpu"), "std": torch.tensor(100.0, device="cpu")}

    def update_state(self, state: State, batch: BatchInfo) -> None:
        """Move the averages towards this batch's; one row alone has no spread and leaves ``std`` as it is."""
        norms = batch.norms.detach().clamp(*_NORM_RANGE)
        state["mean"].lerp_(norms.mean().to(state["mean"].dtype), self.momentum)
        if norms.shape[0] > 1:
            state["std"].lerp_(norms.std().to(state["std"].dtype), self.momentum)

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s (cos(theta - m z) - m z - m)``, (B,) -> (B,)."""
        norms = batch.norms.detach().clamp(*_NORM_RANGE)
        z = ((norms - state["mean"]) / (state["std"] + _EPS) * self.h).clamp(-1.0, 1.0)
        theta = (angle(cosine) - self.margin * z).clamp(_EPS, torch.pi - _EPS)
        modified = torch.cos(theta) - self.margin * (z + 1.0)
        return self.scale * with_margin_grad(cosine, modified, self.margin_grad)
