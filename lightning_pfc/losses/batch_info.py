"""What a loss may know of a batch, and of the softmax over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

State = dict[str, Tensor]
"""A loss's averages and learned parameters by name."""


@dataclass(frozen=True)
class BatchInfo:
    """Facts about the B rows of the batch, the same on every rank.

    Attributes:
        labels: (B,) int64 global class ids; (B, P), -1 for none, where samples have several.
        norms: (B,) float, the embeddings' Euclidean norms before normalisation; carries gradient.
        target_cosine: (B,) float, detached; None unless the loss has ``needs_target_cosine``.
        seed, step: of the head; randomness of a loss must be keyed by them and by ``index``, never by a generator.
        index: (B,) int64, place of each row in the global batch.
    """

    labels: Tensor
    norms: Tensor
    target_cosine: Tensor | None
    seed: int
    step: Tensor
    index: Tensor


class LogitSums(NamedTuple):
    """Of the negatives of each row, over all ranks.

    Attributes:
        negative_logsumexp: (B,) log sum_j exp(z_ij).
        negative_sum: (B,) sum_j z_ij (or softplus(z_ij)); None unless the loss has ``needs_negative_sum``.
        num_sampled: () K, classes that took part, targets included; (B,) without the other positives of a row.
    """

    negative_logsumexp: Tensor
    negative_sum: Tensor | None
    num_sampled: Tensor
