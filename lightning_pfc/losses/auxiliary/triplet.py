"""Triplet loss with the hardest positive and negative of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.losses.auxiliary.base import AuxiliaryLoss, masked_mean, same_identity, unit


@checked
@dataclass(frozen=True, kw_only=True)
class Triplet(AuxiliaryLoss):
    """``max(d(a, p) - d(a, n) + m, 0)`` for every row a, the farthest row p of its identity and the nearest other n.

    FaceNet's loss (arXiv:1503.03832, eq. 2) with batch-hard mining (arXiv:1703.07737, eq. 5), over the batch of all
    ranks. Rows without a partner of their identity say nothing, so the batches should hold several images of a class.

    Args:
        weight: see :class:`AuxiliaryLoss`.
        margin: m >= 0.
        normalize: distances between unit vectors (in [0, 2]), or between the embeddings as they are.
        soft: ``softplus(d(a, p) - d(a, n))`` in place of the hinge; then the margin is not used and must stay 0.3.
    """

    margin: float = 0.3
    normalize: bool = True
    soft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("margin", 0.0)
        if self.soft and self.margin != 0.3:
            raise ValueError(f"Triplet(soft=True, margin={self.margin!r}): the soft form has no margin; leave it out.")

    def __call__(self, embeddings: Tensor, labels: Tensor, memory: Mapping[str, Tensor] | None = None) -> Tensor:
        """As :class:`AuxiliaryLoss`; 0 if no row has both a positive and a negative."""
        x = unit(embeddings) if self.normalize else embeddings
        squared = x.square().sum(1)
        distance = (squared[:, None] + squared[None, :] - 2 * x @ x.t()).clamp(min=1e-12).sqrt()
        positive, negative = same_identity(labels)
        farthest = distance.masked_fill(~positive, -torch.inf).amax(1)
        nearest = distance.masked_fill(~negative, torch.inf).amin(1)
        valid = positive.any(1) & negative.any(1)
        gap = torch.where(valid, farthest - nearest, 0.0)
        return masked_mean(F.softplus(gap) if self.soft else F.relu(gap + self.margin), valid)
