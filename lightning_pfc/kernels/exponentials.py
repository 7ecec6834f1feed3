"""Exponentials of scores and their sums, in one pass; the scores of targets are left out."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from lightning_pfc.kernels.library import operation


def _twin(
    scores: Tensor, out: Tensor, scale: float, reference: float, targets: Tensor, offsets: Tensor | None, first: int
) -> Tensor:
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    in_place = out.dtype == wide and out.data_ptr() == scores.data_ptr()
    logits = scores.mul_(scale) if in_place else scores.to(wide) * scale
    if offsets is not None:
        logits += offsets.to(wide)
    logits.sub_(reference).exp_()
    last = scores.shape[1] - 1
    for target in (targets - first).unbind(1):
        owned, column = (target >= 0) & (target <= last), target.clamp(0, max(0, last))[:, None]
        logits.scatter_(1, column, torch.where(owned[:, None], 0.0, logits.gather(1, column)))
    if not in_place:
        out.copy_(logits)
    return out.sum(1, dtype=wide)


def _fake(
    scores: Tensor, out: Tensor, scale: float, reference: float, targets: Tensor, offsets: Tensor | None, first: int
) -> Tensor:
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return scores.new_empty((scores.shape[0],), dtype=wide)


_operation = operation(
    "exponentials_(Tensor scores, Tensor(a!) out, float scale, float reference, Tensor targets, Tensor? offsets,"
    " int first) -> Tensor",
    _twin,
    _fake,
    "lightning_pfc.kernels.gpu.calls:exponentials_",
    launches=2,
)


def exponentials_(
    scores: Tensor,
    out: Tensor,
    scale: float,
    reference: float,
    targets: Tensor,
    offsets: Tensor | None = None,
    first: int = 0,
    *,
    kernels: Container[str] | None = None,
) -> Tensor:
    """Write ``exp(scale * scores + offsets - reference)`` into ``out``, 0 at targets, and add up what was written.

    The target's probability is near 1 when the rest is small, so it is kept apart and never rounded with the others.
    Sums are those of the rounded numbers, in float32, in an order that depends on shapes only.

    Args:
        scores: (B, K) floating; rows must be contiguous.
        out: (B, K) in the type to keep. It may be ``scores`` itself, or a view of it in a type of the same size.
        scale: of the logits.
        reference: what is taken off every logit, so that nothing overflows.
        targets: (B, P) int64, columns of each row's targets among all classes, -1 for none.
        offsets: (K,) floating, added to every row: -inf leaves a column out. None for nothing.
        first: which of all columns is the first of these.
        kernels: which operations run as kernels, as :func:`~lightning_pfc.kernels.choice.choose` says.

    Returns:
        (B,) float32.
    """
    sums: Tensor = _operation(scores, out, scale, reference, targets, offsets, first, kernels=kernels)
    return sums
