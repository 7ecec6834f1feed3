"""The one door to the softmax over sharded classes, and which engine is behind it.

For every row a loss needs three numbers: the log-sum-exp of its negatives' logits over all ranks, optionally the sum of
those logits, and the targets' cosines. All else about a loss happens on vectors of B numbers, in ordinary autograd,
outside. Shapes as in :mod:`lightning_pfc.heads.softmax.spec`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_pfc.heads.softmax.kept_softmax import can_keep_exponentials, kept_softmax
from lightning_pfc.heads.softmax.spec import SampledRows, SoftmaxSpec, SoftmaxSums
from lightning_pfc.heads.softmax.streamed import streamed_softmax


def sharded_softmax(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: SampledRows,
    spec: SoftmaxSpec,
    learned: Mapping[str, Tensor] | None = None,
) -> SoftmaxSums:
    """The sums of a softmax over classes that are sharded over ranks.

    One all-reduce of P + 1 or P + 2 numbers a row over ``shard_group`` forward (and one maximum before it where the
    logits have no bound); none backward, where only the copies of a replicated head add their center gradients. The
    gradient of ``x`` is this rank's part (its classes only): the gather's backward sums it over the ranks.

    Args:
        x: (B, D) float32 or float64, unit rows where ``spec.normalize``; the same on every rank of ``shard_group``.
        weight: (c, D) this rank's centers, any floating dtype; rows are brought to the dtype of ``x`` chunk by chunk,
            and to its device: the centers may be in the host's memory, where the host waits for the device once
            forward, for the row numbers, and for the gradients backward.
        bias: (c,) or None.
        targets: (B, P) int64, columns of the positives among this rank's K sampled rows; -1 where another rank owns the
            class, or for none. A row's positives are never among its negatives.
        rows: the sampled rows.
        spec: the rest.
        learned: parameters of ``spec.curve`` by name; like ``x``, they get this rank's part of the gradient.

    Returns:
        :class:`SoftmaxSums`. The gradient of ``weight`` is row-sparse (COO) where an optimizer of
        :mod:`lightning_pfc.optim` holds it, dense otherwise.
    """
    if can_keep_exponentials(spec):
        return kept_softmax(x, weight, targets, rows, spec)
    return streamed_softmax(x, weight, bias, targets, rows, spec, learned or {})
