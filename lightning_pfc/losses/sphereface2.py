"""SphereFace2: one binary classifier per class instead of a softmax over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, LogitSums, State
from lightning_pfc.losses.margins import MarginGrad, with_margin_grad


@dataclass(frozen=True, kw_only=True)
class SphereFace2(Loss):
    """SphereFace2 with an additive margin (arXiv:2108.01513, eq. 5 and 6), summed over all sampled classes.

    ``w/s (lambda softplus(-(s (g(cos_y) - m) + b)) + (1 - lambda) sum_j softplus(s (g(cos_j) + m) + b))`` with ``g(z)
    = 2 ((z + 1) / 2)^t - 1`` and a learned ``b``, shared by all classes, that starts where the two parts' gradients
    balance (paper, appendix). Needs one more number a row in the head's all-reduce, and one all-reduce of ``b``'s
    gradient.

    Args:
        scale: s > 0; r in the paper.
        margin: m, an offset to g in [0, 2], as far as g reaches.
        power: t > 0.
        balance: lambda in (0, 1), the weight of the positive.
        weight: w > 0, a factor on the whole loss, for learning rates that suit a softmax.
        margin_grad: "exact" differentiates through g, as the equations have it; "straight_through" takes the derivative
            of g for one, for positives and negatives, as the authors' code does ("characteristic gradient detachment").
    """

    scale: float = 40.0
    margin: float = 0.4
    power: float = 3.0
    balance: float = 0.7
    weight: float = 50.0
    margin_grad: MarginGrad = "exact"

    linear_negatives: ClassVar[bool] = False
    softplus_negatives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", low=0.0, high=2.0)
        self._check_number("power", low=0.0, open_low=True)
        self._check_number("balance", low=0.0, high=1.0, open_high=True, open_low=True)
        self._check_number("weight", low=0.0, open_low=True)
        self._check_choice("margin_grad", ("exact", "straight_through"))
        self._refuse_softmax_options()

    def _g(self, cosine: Tensor) -> Tensor:
        modified = 2.0 * ((cosine.clamp(-1.0, 1.0) + 1.0) / 2.0) ** self.power - 1.0
        return with_margin_grad(cosine, modified, self.margin_grad)

    def initial_parameters(self, num_classes: int) -> State:
        """``bias``: where, at cosine 0, the positive's gradient equals that of all negatives together."""
        share = self.balance / ((1.0 - self.balance) * max(num_classes - 1, 1))
        g = 2.0 * 0.5**self.power - 1.0
        positive, negative = self.scale * (g - self.margin), self.scale * (g + self.margin)
        # lambda sigmoid(-(p + b)) = (1 - lambda) (C - 1) sigmoid(n + b), a quadratic equation in exp(b), solved in
        # logarithms: e^b = (share - 1 + sqrt((1 - share)^2 + 4 share e^(p - n))) / (2 e^p)
        root = math.sqrt((1.0 - share) ** 2 + 4.0 * share * math.exp(positive - negative))
        top = share - 1.0 + root
        if share < 1.0:  # the same, without the difference of near numbers
            top = 4.0 * share * math.exp(positive - negative) / (1.0 - share + root)
        return {"bias": torch.tensor(math.log(top / 2.0) - positive, device="cpu")}

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s (g(cos_j) + m) + b``, (B, n) -> (B, n)."""
        return self.scale * (self._g(cosine) + self.margin) + state["bias"]

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s (g(cos_y) - m) + b``, (B,) -> (B,)."""
        return self.scale * (self._g(cosine) - self.margin) + state["bias"]

    def per_sample_loss(self, target_logits: Tensor, sums: LogitSums, batch: BatchInfo, state: State) -> Tensor:
        """The weighted sum of the binary losses, (B,)."""
        assert sums.negative_sum is not None
        positive = F.softplus(-target_logits)
        return self.weight / self.scale * (self.balance * positive + (1.0 - self.balance) * sums.negative_sum)
