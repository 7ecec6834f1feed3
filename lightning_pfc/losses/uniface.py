"""UniFace: a softmax taken apart, with one learned threshold between all positives and all negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.losses.base import CenterInit, Loss
from lightning_pfc.losses.batch_info import BatchInfo, LogitSums, State


@dataclass(frozen=True, kw_only=True)
class UniFace(Loss):
    """Unified cross entropy with margin and balance (UniFace, Zhou et al., ICCV 2023).

    ``softplus(-(s (cos_y - m) - b)) + lambda sum_j softplus(s cos_j - b)``: every pair is asked to lie on its side of
    one threshold ``b / s``, which is learned and starts at ``log(10 C)``, as ``Unified_Cross_Entropy_Loss`` in the
    authors' code does. The paper's other balance, a share r of the negatives, is this package's ``sample_rate``; the
    authors' b then starts at ``log(10 C r)``. Needs one more number a row in the head's all-reduce, and one
    all-reduce of ``b``'s gradient.

    Args:
        scale: s > 0.
        margin: m >= 0, a cosine offset.
        balance: lambda > 0, the weight of the negatives.
        clamp_logits: keep each ``s cos - b`` within [-s, s], as the authors' code does. A positive whose cosine is
            below ``(b - s) / s + m`` then has no gradient; the paper has no such thing.
    """

    margin: float = 0.4
    balance: float = 1.0
    clamp_logits: bool = False

    center_init: ClassVar[CenterInit] = "kaiming"
    linear_negatives: ClassVar[bool] = False
    softplus_negatives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=0.0)
        self._check_number("balance", low=0.0, open_low=True)
        self._check_flag("clamp_logits")
        self._refuse_softmax_options()

    def initial_parameters(self, num_classes: int) -> State:
        """``threshold``: log(10 C), so that C random negatives together cost 0.1 a row."""
        return {"threshold": torch.tensor(math.log(10.0 * num_classes), device="cpu")}

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos_j - b``, (B, n) -> (B, n)."""
        return self._clamped(self.scale * cosine - state["threshold"])

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s (cos_y - m) - b``, (B,) -> (B,)."""
        return self._clamped(self.scale * (cosine - self.margin) - state["threshold"])

    def _clamped(self, logits: Tensor) -> Tensor:
        return logits.clamp(-self.scale, self.scale) if self.clamp_logits else logits

    def per_sample_loss(self, target_logits: Tensor, sums: LogitSums, batch: BatchInfo, state: State) -> Tensor:
        """``softplus(-z_y) + lambda sum_j softplus(z_j)``, (B,)."""
        assert sums.negative_sum is not None
        return F.softplus(-target_logits) + self.balance * sums.negative_sum
