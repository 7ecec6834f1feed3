"""The targets alone: their cosines before all else, and where they stand among all classes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.buffers.host_rows import take_rows
from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.softmax.class_chunks import NORM_EPS, ClassChunks, iter_cosines
from lightning_pfc.heads.softmax.spec import SampledRows, SoftmaxSpec


class TargetRanks(NamedTuple):
    """Where targets stand.

    Attributes:
        rank: (B,) int64, how many of the other classes score at least what the target does: 0 is a top-1 hit.
            Ties count against the target, or a network whose embeddings are all zero would be always right.
        cosine: (B,) float, the target's cosine (its logit, for a loss without normalisation).
    """

    rank: Tensor
    cosine: Tensor


@torch.no_grad()
def target_cosines(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: SampledRows, spec: SoftmaxSpec
) -> Tensor:
    """The targets' cosines (B, P) alone, without gradient, for losses that need them first; one all-reduce.

    The arguments are those of :func:`~lightning_pfc.heads.softmax.sharded_softmax`.
    """
    return all_reduce(own_target_cosines(x, weight, bias, targets, rows, spec), spec.shard_group)


@torch.no_grad()
def own_target_cosines(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: SampledRows, spec: SoftmaxSpec
) -> Tensor:
    """As :func:`target_cosines`, 0 for the classes of other ranks; no collective."""
    if rows.index is not None and rows.index.shape[0] == 0:  # nothing of this step lives here
        return x.new_zeros(targets.shape)
    local = targets.clamp(min=0).flatten()
    ids = local if rows.index is None else rows.index[local]
    ahead = None if rows.staged is None else rows.staged.take_there(weight)
    found = take_rows(weight, ids, x.device) if ahead is None else ahead.index_select(0, local)
    centers = found.to(x.dtype).view(ids.shape[0], spec.centers_per_class, -1)
    value = torch.bmm(centers, x.repeat_interleave(targets.shape[1], 0)[:, :, None]).squeeze(2)
    if spec.normalize:
        value /= centers.norm(dim=2).clamp(min=NORM_EPS)
    value = value.amax(1)
    if bias is not None:
        value += bias.index_select(0, ids).to(x.dtype)
    return torch.where(targets >= 0, value.view(targets.shape), 0.0)


@torch.no_grad()
def rank_targets(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: SampledRows, spec: SoftmaxSpec
) -> TargetRanks:
    """Where each row's target stands among the classes of all ranks. Two all-reduces of (B,).

    The arguments are those of :func:`~lightning_pfc.heads.softmax.sharded_softmax`, with one positive a row. In float32
    whatever ``spec.precision`` says.
    """
    spec = replace(spec, precision="float32")
    cosine = target_cosines(x, weight, bias, targets, rows, spec)
    above = targets.new_zeros(x.shape[0])
    for chunk in iter_cosines(ClassChunks(x, weight, bias, targets, rows, spec)):
        # The target is left out: rounding may lift it above its own score as computed elsewhere. NaN beats nothing.
        above += chunk.targets.fill_((chunk.scores >= cosine) | cosine.isnan(), False).sum(1)
    return TargetRanks(all_reduce(above, spec.shard_group), cosine.squeeze(1))
