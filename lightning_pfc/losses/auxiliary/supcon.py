"""Supervised contrastive loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.losses.auxiliary.base import AuxiliaryLoss, masked_mean, same_identity, unit


@dataclass(frozen=True, kw_only=True)
class SupCon(AuxiliaryLoss):
    """``-1/|P(i)| sum_{p in P(i)} log(exp(cos_ip / T) / sum_{a != i} exp(cos_ia / T))`` over the rows of all ranks.

    Supervised contrastive learning, arXiv:2004.11362, eq. 2 (the mean outside the logarithm). P(i) are the other rows
    of i's identity; rows without any say nothing, so the batches should hold several images of a class.

    Args:
        weight: see :class:`AuxiliaryLoss`.
        temperature: T > 0.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("temperature", 0.0, open_low=True)

    def __call__(self, embeddings: Tensor, labels: Tensor, memory: Mapping[str, Tensor] | None = None) -> Tensor:
        """As :class:`AuxiliaryLoss`; 0 if no identity has two rows."""
        x = unit(embeddings)
        positive, negative = same_identity(labels)
        logits = x @ x.t() / self.temperature
        others = logits.masked_fill(~(positive | negative), torch.finfo(logits.dtype).min)
        log_probability = logits - others.logsumexp(1, keepdim=True)
        count = positive.sum(1)
        mean = torch.where(positive, log_probability, 0.0).sum(1) / count.clamp(min=1)
        return masked_mean(-mean, count > 0)
