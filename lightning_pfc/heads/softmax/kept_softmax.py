"""The engine of kept exponentials: sums of a softmax over sharded classes, as one differentiable function.

Shapes as in :mod:`lightning_pfc.heads.softmax.spec`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_pfc.buffers.host_rows import stage_pinned
from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.softmax.center_gradients import center_grad_sink, is_row_sparse
from lightning_pfc.heads.softmax.chunking import chunk_width, num_kept
from lightning_pfc.heads.softmax.class_chunks import ClassChunks
from lightning_pfc.heads.softmax.exponentials import LARGEST_SCALE, can_fuse
from lightning_pfc.heads.softmax.kept_exponentials import ClassExponentials, ExponentialPlan, Kept
from lightning_pfc.heads.softmax.matmul import products_in
from lightning_pfc.heads.softmax.precision import ARITHMETIC
from lightning_pfc.heads.softmax.spec import SampledRows, SoftmaxSpec, SoftmaxSums
from lightning_pfc.heads.softmax.targets_apart import TargetsApart, target_cosines, target_x_grad
from lightning_pfc.heads.softmax.unit_rows import unit_rows

_NO_NEGATIVES = -1e30  # a very low, finite logarithm keeps every derivative zero and not NaN


def can_keep_exponentials(spec: SoftmaxSpec) -> bool:
    """Whether the negatives' logits are ``scale * cosine`` of one center a class, and bounded well enough."""
    plain = spec.curve is None and spec.normalize and spec.centers_per_class == 1 and spec.blended is None
    bounded = spec.logit_bound is not None and spec.logit_bound <= spec.scale <= LARGEST_SCALE
    return plain and bounded and not spec.softplus and spec.gradient_filter == 0.0


def kept_softmax(x: Tensor, weight: Tensor, targets: Tensor, rows: SampledRows, spec: SoftmaxSpec) -> SoftmaxSums:
    """:func:`~lightning_pfc.heads.softmax.sharded_softmax` where :func:`can_keep_exponentials`.

    Args and collectives as there; the targets' cosines, and their part of both gradients, are those of float32 rows in
    every precision.
    """
    logsumexp, total, cosine = _KeptSoftmax.apply(x, weight, targets, rows, spec)
    return SoftmaxSums(logsumexp, total if spec.sums_logits else None, cosine)


class _KeptSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, rows: SampledRows, spec: SoftmaxSpec
    ) -> tuple[Tensor, Tensor, Tensor]:
        arithmetic = ARITHMETIC[spec.precision]
        num_rows = weight.shape[0] if rows.index is None else rows.index.shape[0]
        itemsize = max(arithmetic.kept.itemsize, x.element_size() if arithmetic.kept == torch.float32 else 0)
        if spec.chunk_size is None:
            budget = spec.memory_budget
            width = chunk_width(x.shape[0], num_rows, x.shape[1], x.device, kept_bytes=itemsize, budget=budget)
            spec = replace(spec, chunk_size=width)
        stored_index, target_ids = _stored_ids(weight, targets, rows, x.device)
        chunks = ClassChunks(x, weight, None, targets, rows, spec, stored_index)
        apart = TargetsApart(targets, chunks.ranges)
        plan = ExponentialPlan(
            num_kept(chunks.ranges, x.shape[0] * itemsize, spec.memory_budget),
            fused=can_fuse(x, arithmetic) and rows.log_weight is None,
        )
        with products_in(arithmetic.precision, x.device):
            classes = ClassExponentials(chunks, apart, plan)
            sums, kept = classes.forward(wants_x_grad=ctx.needs_input_grad[0])
            if classes.lacks_terms(sums):
                plan = replace(plan, fused=False)
                classes = ClassExponentials(chunks, apart, plan)
                sums, kept = classes.forward(wants_x_grad=ctx.needs_input_grad[0])
        units = _target_units(weight, target_ids, x)
        cosine = target_cosines(x, units, targets)
        parts = [sums * math.exp(classes.reference), *cosine.t().to(sums.dtype)]
        if kept.unit_sum is not None:
            own = x @ kept.unit_sum - (cosine * apart.once()).sum(1)
            parts.append(spec.scale * own.to(sums.dtype))
        reduced = all_reduce(torch.stack(parts), spec.shard_group)  # (P + 1 or 2, B)
        logsumexp = reduced[0].log().clamp(min=_NO_NEGATIVES)
        total = reduced[-1].to(x.dtype) if spec.sums_logits else torch.zeros_like(x[:, 0])

        ctx.rows, ctx.spec, ctx.plan, ctx.stored_index = rows, spec, plan, stored_index
        ctx.row_sparse = (is_row_sparse(weight), False)
        ctx.save_for_backward(x, weight, targets, units, logsumexp, *kept)
        cosine = reduced[1 : 1 + targets.shape[1]].t().to(x.dtype).contiguous()
        return logsumexp.to(x.dtype), total, cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logsumexp_grad: Tensor, sum_grad: Tensor, target_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets, units, logsumexp, *tensors = ctx.saved_tensors
        spec, kept = ctx.spec, Kept(*tensors)
        chunks = ClassChunks(x, weight, None, targets, ctx.rows, spec, ctx.stored_index)
        apart = TargetsApart(targets, chunks.ranges)
        sink = center_grad_sink(chunks, ctx.row_sparse, wanted=ctx.needs_input_grad[1])
        with products_in(ARITHMETIC[spec.precision].gradients, x.device):
            classes = ClassExponentials(chunks, apart, ctx.plan)
            factors = _factors(logsumexp, logsumexp_grad, spec.scale, classes.reference).to(x.dtype)
            everywhere = None
            if kept.unit_sum is not None:
                spread = spec.scale * sum_grad
                everywhere = spread @ x
                target_grad = target_grad - spread[:, None] * apart.once().to(x.dtype)  # a positive is no negative
            late = classes.backward(kept, factors, target_grad, everywhere, sink)
            x_grad = None
            if ctx.needs_input_grad[0]:
                x_grad = target_x_grad(target_grad, units, targets)
                if late is not None:
                    x_grad += late
                if kept.x_sums is not None:
                    x_grad.addcmul_(factors[:, None], kept.x_sums)
                if kept.unit_sum is not None:
                    x_grad += spread[:, None] * kept.unit_sum
        return x_grad, sink.weight_grad(), None, None, None


def _stored_ids(
    weight: Tensor, targets: Tensor, rows: SampledRows, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """The sampled rows (K,) and those of the targets (B P,), of row 0 where there is none, where the centers are.

    One transfer for both: with centers on the host it waits for the device.
    """
    places, index = targets.flatten().clamp(min=0), rows.index
    if index is None:
        return None, places.to(weight.device)
    if index.shape[0] == 0:
        return index.to(weight.device), places.to(weight.device)
    if weight.device == device:
        return index, index.index_select(0, places)
    both = torch.cat([index, index.index_select(0, places)]).to(weight.device)
    return both[: index.shape[0]], both[index.shape[0] :]


def _target_units(weight: Tensor, ids: Tensor, x: Tensor) -> Tensor:
    """Unit rows (B P, D) in the compute dtype and on its device."""
    if weight.device == x.device:
        return unit_rows(weight.index_select(0, ids).to(x.dtype))[0]
    return unit_rows(stage_pinned(weight, ids).to(x.device, x.dtype, non_blocking=True))[0]


def _factors(logsumexp: Tensor, grad: Tensor, scale: float, reference: float) -> Tensor:
    """(B,) c: what a kept exponential has to be multiplied by to be d loss / d cosine; 0 where there is no negative."""
    there = logsumexp > _NO_NEGATIVES
    share = torch.exp(reference - torch.where(there, logsumexp, reference))
    return torch.where(there, share * grad.to(share.dtype) * scale, 0.0)
