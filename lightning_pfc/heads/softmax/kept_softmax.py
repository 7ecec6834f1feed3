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

from lightning_pfc.distributed.class_rows import is_row_sparse
from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.softmax.center_gradients import center_grad_sink
from lightning_pfc.heads.softmax.chunking import bytes_to_keep, chunk_width, num_kept
from lightning_pfc.heads.softmax.class_chunks import ClassChunks
from lightning_pfc.heads.softmax.exponentials import LARGEST_SCALE, can_fuse
from lightning_pfc.heads.softmax.kept_exponentials import ClassExponentials, ExponentialPlan, Kept
from lightning_pfc.heads.softmax.own_targets import OwnTargets
from lightning_pfc.heads.softmax.precision import ARITHMETIC
from lightning_pfc.heads.softmax.spec import SampledRows, SoftmaxSpec, SoftmaxSums
from lightning_pfc.heads.softmax.targets_apart import TargetsApart
from lightning_pfc.kernels.library import takes_kernels, using
from lightning_pfc.kernels.sums import pack_sums, unpack_sums
from lightning_pfc.matmul.in_precision import products_in


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
        ctx.set_materialize_grads(False)
        spec = _with_chunk_size(spec, x, weight.shape[0] if rows.index is None else rows.index.shape[0])
        own = OwnTargets.of(x, weight, targets, rows)
        chunks = ClassChunks(x, weight, None, targets, rows, spec, own.index)
        apart = TargetsApart(targets, chunks.ranges)
        classes, sums, kept = _exponentials(chunks, apart, wants_x_grad=ctx.needs_input_grad[0])
        kernels = None if takes_kernels(x) else ()
        cosine = own.cosines(x)
        parts = pack_sums(sums, cosine, math.exp(classes.reference), kernels=kernels)
        if kept.unit_sum is not None:
            others = x @ kept.unit_sum - (cosine * apart.once()).sum(1)
            parts = torch.cat([parts, (spec.scale * others.to(parts.dtype))[None]])
        reduced = all_reduce(parts, spec.shard_group)  # (P + 1 or 2, B)
        wide, logsumexp, cosine = unpack_sums(reduced, targets.shape[1], x.dtype, kernels=kernels)
        total = reduced[-1].to(x.dtype) if spec.sums_logits else torch.empty_like(logsumexp)  # nobody reads it

        ctx.rows, ctx.spec, ctx.plan, ctx.stored_index = rows, spec, classes.plan, own.index
        ctx.row_sparse = (is_row_sparse(weight), False)
        ctx.save_for_backward(x, weight, targets, own.units, wide, *kept.tensors)
        return logsumexp, total, cosine

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logsumexp_grad: Tensor | None, sum_grad: Tensor | None, target_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, targets, units, logsumexp, *tensors = ctx.saved_tensors
        spec, kept = ctx.spec, Kept.of(tensors)
        own = OwnTargets(targets, weight, ctx.stored_index, units)
        chunks = ClassChunks(x, weight, None, targets, ctx.rows, spec, ctx.stored_index)
        apart = TargetsApart(targets, chunks.ranges)
        sink = center_grad_sink(chunks, ctx.row_sparse, wanted=ctx.needs_input_grad[1])
        logsumexp_grad = x.new_zeros(x.shape[:1]) if logsumexp_grad is None else logsumexp_grad
        target_grad = x.new_zeros(targets.shape) if target_grad is None else target_grad
        with products_in(ARITHMETIC[spec.precision].gradients, x.device), using(spec.kernels):
            classes = ClassExponentials(chunks, apart, ctx.plan)
            begun = classes.begin_backward(kept, logsumexp, logsumexp_grad, wants_centers=sink.is_wanted)
            everywhere = spread = None
            if kept.unit_sum is not None:
                spread = spec.scale * (torch.zeros_like(logsumexp_grad) if sum_grad is None else sum_grad)
                everywhere = spread @ x
                target_grad = target_grad - spread[:, None] * apart.once().to(x.dtype)  # a positive is no negative
            x_grad = None
            if ctx.needs_input_grad[0]:  # first: a backward pass that steps centers changes them
                x_grad = own.x_grad(x, target_grad, begun.x_grad)
            late = classes.backward(kept, begun, target_grad, everywhere, sink)
            if x_grad is not None:
                if late is not None:
                    x_grad += late
                if kept.x_sums is not None and begun.x_grad is None:
                    x_grad.addcmul_(begun.factors[:, None], kept.x_sums)
                if spread is not None:
                    x_grad += spread[:, None] * kept.unit_sum
        return x_grad, sink.weight_grad(), None, None, None


def _with_chunk_size(spec: SoftmaxSpec, x: Tensor, num_rows: int) -> SoftmaxSpec:
    """``spec`` with the default chunk size for ``num_rows`` classes, unless one was given."""
    if spec.chunk_size is not None:
        return spec
    size = _kept_bytes(spec, x)
    width = chunk_width(x.shape[0], num_rows, x.shape[1], x.device, kept_bytes=size, budget=spec.memory_budget)
    return replace(spec, chunk_size=width)


def _kept_bytes(spec: SoftmaxSpec, x: Tensor) -> int:
    """Bytes of an exponential that is kept."""
    kept = ARITHMETIC[spec.precision].kept
    return x.element_size() if kept == torch.float32 else kept.itemsize


def _bytes_to_keep(chunks: ClassChunks, size: int) -> int:
    x = chunks.x
    budget = chunks.spec.memory_budget
    return bytes_to_keep(chunks.width, x.shape[0], x.shape[1], x.device, kept_bytes=size, budget=budget)


def _exponentials(
    chunks: ClassChunks, apart: TargetsApart, *, wants_x_grad: bool
) -> tuple[ClassExponentials, Tensor, Kept]:
    """The pass over the classes: in one go with its products where a CPU can, and again without where that is short."""
    x, spec = chunks.x, chunks.spec
    arithmetic = ARITHMETIC[spec.precision]
    row_bytes = x.shape[0] * _kept_bytes(spec, x)
    plan = ExponentialPlan(
        num_kept(chunks.ranges, row_bytes, _bytes_to_keep(chunks, _kept_bytes(spec, x))),
        fused=can_fuse(x, arithmetic) and chunks.rows.log_weight is None,
    )
    with products_in(arithmetic.precision, x.device):
        classes = ClassExponentials(chunks, apart, plan)
        sums, kept = classes.forward(wants_x_grad=wants_x_grad)
        if classes.lacks_terms(sums):
            classes = ClassExponentials(chunks, apart, replace(plan, fused=False))
            sums, kept = classes.forward(wants_x_grad=wants_x_grad)
    return classes, sums, kept
