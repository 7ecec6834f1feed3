"""What a pass over the classes is given beside its tensors, and what it yields. Nothing here knows a module or a loss.

Shapes, in all of :mod:`lightning_pfc.heads.softmax`: B rows of the gathered batch, P positives a row, K sampled rows of
this rank's centers, n rows of one chunk, D width of an embedding, C classes of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.buffers.staged_rows import StagedRows
from lightning_pfc.heads.softmax.blended_centers import BlendedCenters
from lightning_pfc.matmul.in_precision import Precision

# exp(z - reference) stays a normal float32 for every logit in [-bound, bound] when the reference is bound - 60 and the
# bound is at most this; a sum of 10^9 terms stays finite. Then no maximum is needed: one pass and one collective less.
_LARGEST_FIXED_BOUND = 73.0


class SoftmaxSums(NamedTuple):
    """Over the classes of all ranks, in the compute dtype, the same on every rank.

    Attributes:
        negative_logsumexp: (B,) log of the sum of the negatives' exponentials.
        negative_sum: (B,) sum of the negatives' logits (or of their softplus); None unless asked for.
        target_cosine: (B, P) cosines of the positives (logits, without normalisation).
    """

    negative_logsumexp: Tensor
    negative_sum: Tensor | None
    target_cosine: Tensor


@dataclass(frozen=True, eq=False)
class SampledRows:
    """The rows of this rank's centers that take part in a step.

    Attributes:
        index: (K,) int64 ascending rows; None means all of them.
        num_sampled: () int64 tensor, how many take part on all ranks.
        valid: (K,) bool, False where ``index`` is padding; None means all are real.
        log_weight: (K,) float, logarithm of how often a class counts as a negative: 0 is once, ``-log p`` makes up for
            a class that is drawn with probability p only, ``-inf`` leaves it out; None means once each.
        num_valid: () int64 tensor, how many of ``index`` are real, if it was counted; these come first.
        staged: the rows themselves, on their way from the host's memory; None if they were not requested ahead.
    """

    index: Tensor | None
    num_sampled: Tensor
    valid: Tensor | None = None
    log_weight: Tensor | None = None
    num_valid: Tensor | None = None
    staged: StagedRows | None = None

    def count_valid(self, low: int, high: int) -> Tensor | None:
        """How many of the rows [low, high) are real, () int64; None for all."""
        if self.valid is None:
            return None
        whole = low == 0 and high == self.valid.shape[0]
        return self.num_valid if whole and self.num_valid is not None else self.valid[low:high].sum()

    def logit_offsets(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to the negatives' logits, (K,): ``log_weight``, ``-inf`` for padding; None for nothing."""
        if self.valid is None:
            return None if self.log_weight is None else self.log_weight.to(dtype)
        base = 0.0 if self.log_weight is None else self.log_weight
        return torch.where(self.valid, base, -torch.inf).to(dtype)


LogitCurve = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""Logits (B, n) of negatives from their cosines (B, n) and a loss's own parameters by name, element by element."""


@dataclass(frozen=True, eq=False)
class SoftmaxSpec:
    """Everything about a pass over the classes but its tensors.

    Attributes:
        scale: factor on the cosines of linear logits.
        curve: how the negatives' logits come from their cosines otherwise; None: ``scale * cosine``.
        logit_bound: no logit of a negative is above it; None if there is no bound.
        normalize: whether centers are taken to length 1, so that products are cosines.
        sums_logits: whether the sum of the negatives' logits is wanted.
        softplus: whether their softplus is summed in its place.
        centers_per_class: centers that lie side by side in a row; the nearest counts.
        shard_group: the ranks that share the classes; None for one.
        replica_group: the ranks that hold copies of this shard, over which center gradients are summed; None for none.
        memory_budget: bytes of logits kept from forward to backward; chunks beyond it are computed again.
        chunk_size: classes per chunk; None chooses.
        gradient_filter: share of the gradient that may be left out of the backward products; 0 is exact.
        precision: of the products; see :mod:`lightning_pfc.heads.softmax.precision`.
        blended: what takes the place of the centers; None for the centers themselves.
        kernels: which operations run as kernels; None: those that are found good.
    """

    scale: float = 1.0
    curve: LogitCurve | None = None
    logit_bound: float | None = None
    normalize: bool = True
    sums_logits: bool = False
    softplus: bool = False
    centers_per_class: int = 1
    shard_group: dist.ProcessGroup | None = None
    replica_group: dist.ProcessGroup | None = None
    memory_budget: int = 512 << 20
    chunk_size: int | None = None
    gradient_filter: float = 0.0
    precision: Precision = "float32"
    blended: BlendedCenters | None = None
    kernels: Container[str] | None = None

    @property
    def score_scale(self) -> float:
        """What scores are: ``scale * cosine`` where that is the negatives' logit, else the bare cosine."""
        return self.scale if self.curve is None else 1.0

    @property
    def reference(self) -> float | None:
        """The fixed reference of the exponentials, where the logits are bounded well enough for one."""
        bound = self.logit_bound
        return None if bound is None or bound > _LARGEST_FIXED_BOUND else bound - 60.0
