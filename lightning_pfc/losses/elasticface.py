"""ElasticFace: every row draws its own margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_pfc.keyed_random.uniform import keyed_normal
from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import MarginGrad, angle, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class ElasticFace(Loss):
    """ArcFace or CosFace with a margin drawn from N(m, std^2) for each row and step (ElasticFace, arXiv:2109.09416).

    Margins depend on (head seed, step, place in the global batch), so a run does not change with the number of ranks.
    With ``plus``, the drawn margins are handed out in order: the row closest to its center gets the smallest (paper,
    section 3.3; by rank, where the published code indexes with the inverse permutation). Where a head is replicated
    over groups of ranks, that order is taken within each group.

    Args:
        scale: s > 0.
        margin: m >= 0, radians for "angular" (paper: 0.5), a cosine offset for "additive" (paper: 0.35).
        std: standard deviation of the margin, from 0 to half of pi/2 - m (angular) or to 1 (additive); paper:
            0.0125, with plus 0.0175 (angular) or 0.025 (additive).
        margin_type: "angular" (ElasticFace-Arc) or "additive" (ElasticFace-Cos).
        plus: hand out the margins by difficulty.
        margin_grad: "exact" or "straight_through".
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    margin: float = 0.5
    std: float = 0.0125
    margin_type: Literal["angular", "additive"] = "angular"
    plus: bool = False
    margin_grad: MarginGrad = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=0.0)
        if self.margin_type == "angular":
            self._check_angle("margin")
        # An angle beyond a right one turns where samples start; of a thousand draws 23 lie beyond two deviations.
        most = (math.pi / 2 - self.margin) / 2 if self.margin_type == "angular" else 1.0
        self._check_number("std", low=0.0, high=most)
        self._check_choice("margin_type", ("angular", "additive"))
        self._check_choice("margin_grad", ("exact", "straight_through"))
        self._check_flag("plus")

    def _margins(self, batch: BatchInfo, cosine: Tensor) -> Tensor:
        margins = self.margin + self.std * keyed_normal(batch.seed, batch.step, batch.index).to(cosine.dtype)
        if not self.plus:
            return margins
        easiest_first = cosine.detach().argsort(descending=True, stable=True)
        return torch.empty_like(margins).scatter(0, easiest_first, margins.sort().values)

    @property
    def one_label_only(self) -> str | None:
        """With ``plus``."""
        return "plus=True orders rows by the cosine to their targets" if self.plus else super().one_label_only

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos(theta + m_i)`` or ``s (cos theta - m_i)``, (B,) -> (B,)."""
        margins = self._margins(batch, cosine)
        if self.margin_type == "additive":
            return self.scale * (cosine - margins)
        return self.scale * with_margin_grad(cosine, torch.cos(angle(cosine) + margins), self.margin_grad)
