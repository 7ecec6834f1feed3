"""Which entries of a chunk's gradient are worth a place in the backward products.

Cf. gradient filtering in Cut Cross-Entropy, arXiv:2411.09009, section 4.3: an image meets few classes that it could be
taken for. Every d loss / d cosine below a bound is left out; all of them together, over all ranks, hold at most the
square of the share that may be left out of the sum of squares. The gradients of embeddings and centers were off by a
quarter to a sixtieth of that share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.heads.softmax.class_chunks import Chunk
from lightning_pfc.heads.softmax.sparse_entries import SparseEntries, find_entries
from lightning_pfc.heads.softmax.spec import SoftmaxSpec


def negligible_below(tolerance: float, target_grad: Tensor, num_sampled: Tensor) -> Tensor:
    """() the size below which every d loss / d cosine may be left out, the same on every rank.

    The energy of the gradient, the sum of its squared entries, is at least that of the targets. With each of the B K
    entries that are left out below ``tolerance * sqrt(energy of the targets / (B K))``, they hold at most
    ``tolerance ** 2`` of it.

    Args:
        tolerance: root of the share of the energy that may be left out.
        target_grad: (B, P) d loss / d cosine of the targets.
        num_sampled: () int64, K, classes over all ranks.
    """
    count = num_sampled.to(target_grad.dtype) * target_grad.shape[0]
    return tolerance * (target_grad.square().sum() / count).sqrt()


class GradientFilter:
    """Leaves out entries that together cannot change the gradient beyond ``spec.gradient_filter``.

    Where a negative's entry is an exponential and nothing else, ``exp(score + height)`` with a height for each row, a
    comparison of the scores tells which matter, before a single exponential is computed.

    Args:
        spec: of the pass.
        num_sampled: () int64, classes over all ranks.
        logsumexp: (B,) of the negatives' logits.
        logsumexp_grad: (B,).
        target_grad: (B, P) d loss / d cosine of the targets of all ranks.
    """

    def __init__(
        self, spec: SoftmaxSpec, num_sampled: Tensor, logsumexp: Tensor, logsumexp_grad: Tensor, target_grad: Tensor
    ) -> None:
        self._logsumexp, self._target_grad = logsumexp, target_grad
        self._factor = logsumexp_grad * spec.scale
        self._least = negligible_below(spec.gradient_filter, target_grad, num_sampled)
        self._is_exponential = spec.curve is None and not spec.sums_logits and spec.centers_per_class == 1
        self._least_score = (self._least.log() - self._factor.abs().log() + logsumexp)[:, None]

    def predict(self, chunk: Chunk) -> SparseEntries | None:
        """The entries of a chunk that matter, from its scores alone; None where that cannot be, or they are many."""
        if not self._is_exponential:
            return None
        scores, offsets = chunk.scores, chunk.offsets
        matters = (scores if offsets is None else scores + offsets) > self._least_score
        found = find_entries(chunk.targets.fill_(matters, True))
        if found is None:
            return None
        rows, columns = found
        exponents = scores[rows, columns] - self._logsumexp[rows]
        if offsets is not None:
            exponents += offsets[columns]
        values = exponents.exp_().mul_(self._factor[rows])
        is_target = (chunk.targets.columns[rows] == columns[:, None]) & chunk.targets.here[rows]
        target_values = torch.where(is_target, self._target_grad[rows], 0.0).sum(1)
        return SparseEntries(rows, columns, torch.where(is_target.any(1), target_values, values))

    def select(self, cos_grad: Tensor) -> SparseEntries | None:
        """Those of a gradient (B, n) that was computed; None where they are many."""
        if self._is_exponential:
            return None  # they were too many a moment ago
        found = find_entries(cos_grad.abs() > self._least)
        return None if found is None else SparseEntries(*found, cos_grad[found])
