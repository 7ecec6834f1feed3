"""D-Softmax: the intra-class and the inter-class objective of the softmax as two terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, LogitSums, State


@dataclass(frozen=True, kw_only=True)
class DSoftmax(Loss):
    """``log(1 + e^(s d) / e^(s cos t_y)) + log(1 + sum_{j != y} e^(s cos t_j))``.

    Softmax Dissection, arXiv:1908.01281, D-Softmax: in the softmax, a target that is ahead of its negatives is no
    longer pulled, and the other way round. Here the first term pulls every row to its center until its cosine is well
    beyond d, however far the negatives are; the second pushes the negatives away, wherever the target is. With
    ``sample_rate`` below 1 only the second term is sampled, which is the paper's D-Softmax-K; with
    ``sampler=dissection`` exactly so.

    Args:
        scale: s > 0.
        end_point: d, the cosine at which the pull on the target has fallen to half, in (-1, 1]; 0.9 in the paper's
            best setting.
        interclass_filter: see :class:`Loss`.
        label_smoothing: there is none: it must stay 0.
    """

    scale: float = 32.0
    end_point: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("end_point", low=-1.0, high=1.0, open_low=True)
        self._refuse_smoothing()

    def per_sample_loss(self, target_logits: Tensor, sums: LogitSums, batch: BatchInfo, state: State) -> Tensor:
        """Intra-class plus inter-class term, (B,)."""
        intra = F.softplus(self.scale * self.end_point - target_logits, threshold=50.0)
        return intra + F.softplus(sums.negative_logsumexp, threshold=50.0)
