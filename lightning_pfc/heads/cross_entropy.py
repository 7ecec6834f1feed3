"""Streaming, sharded softmax sums: forward and backward over the sampled classes in chunks, never the whole logits.

Shapes: B rows of the gathered batch, k sampled classes of this rank, n classes of one chunk, D embedding.

For every row the loss needs three numbers: the log-sum-exp of its negatives' logits over all ranks, optionally the sum
of those logits, and the target's cosine. All else about a loss happens on vectors of B numbers, in ordinary autograd,
outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.chunks import Chunks
from lightning_pfc.heads.learned_curve import LearnedCurve
from lightning_pfc.heads.memory import scratch
from lightning_pfc.heads.plan import Plan, Sums
from lightning_pfc.heads.row_gradients import RowGradients
from lightning_pfc.heads.slope_filter import SlopeFilter
from lightning_pfc.heads.sparse_slopes import times_centers
from lightning_pfc.losses.base import Loss
from lightning_pfc.products import fast_float32_products


def sharded_softmax_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, learned: tuple[str, ...] = ()
) -> Sums:
    """The sums of a softmax over classes that are sharded over ranks.

    One all-reduce of two or three numbers a row over ``shard_group`` forward (and one maximum before it where the
    logits have no bound); none backward, where only the copies of a replicated head add their row gradients. The
    gradient of ``x`` is this rank's share (its classes only): the gather's backward sums it over the ranks.

    Args:
        x: (B, D) float32 or float64, unit rows for a loss with ``normalize``; the same on every rank of
            ``shard_group``.
        weight: (c, D) this rank's centers, any floating dtype; rows are brought to the dtype of ``x`` chunk by chunk,
            and to its device: the centers may be in the host's memory, where the host waits for the device once
            forward, for the row numbers, and for the gradients backward.
        bias: (c,) or None.
        plan: the rest.
        learned: which tensors of ``plan.state`` are parameters; like ``x``, they get this rank's share of the gradient.

    Returns:
        :class:`Sums`. The gradient of ``weight`` is row-sparse (COO) where ``weight.row_sparse`` is set, dense
        otherwise.
    """
    logsumexp, total, target = _SoftmaxSums.apply(x, weight, bias, plan, learned, *(plan.state[n] for n in learned))
    return Sums(logsumexp, total if plan.loss.needs_negative_sum else None, target)


class _SoftmaxSums(torch.autograd.Function):
    @staticmethod
    @fast_float32_products()
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, learned: tuple[str, ...], *values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, reference = plan.loss, plan.reference
        chunks = Chunks(x, weight, bias, plan)
        batch = x.shape[0]
        # Sums over many chunks and ranks: float64 where there is such a thing costs B numbers.
        wide = x.dtype if x.device.type == "mps" else torch.float64
        exponentials = x.new_zeros(batch, dtype=wide)
        total = x.new_zeros(batch, dtype=wide)
        target = x.new_zeros(batch)
        maximum = x.new_full((batch,), -torch.inf if reference is None else reference)

        keep = min(len(chunks.ranges), plan.memory_budget // max(1, batch * chunks.width * x.element_size()))
        kept: list[Tensor] = []
        norms: list[Tensor] = []
        # Kept scores are one allocation, so that the allocator sees few sizes.
        store = scratch((sum(high - low for low, high in chunks.ranges[:keep]) * batch,), x)
        shared, room = (scratch((batch * chunks.width,), x) for _ in range(2))
        for i, (low, high) in enumerate(chunks.ranges):
            n = high - low
            rows = chunks.rows(low, high)
            inverse = chunks.inverse_norms(rows) if loss.normalize else None
            out = (store[low * batch : high * batch] if i < keep else shared[: n * batch]).view(batch, n)
            scores = chunks.scores(low, high, rows, inverse, out, plan.score_scale)
            if inverse is not None:
                norms.append(inverse)
            if i < keep:
                kept.append(scores)
            column, hit = chunks.targets(low, high)
            target += torch.where(hit, scores.gather(1, column), 0.0).squeeze(1)
            logits = room[: n * batch].view(batch, n)
            if plan.linear:
                torch.sub(scores, reference or 0.0, out=logits)
            else:
                torch.sub(loss.negative_logits(scores, plan.rows, plan.state), reference or 0.0, out=logits)
            if loss.needs_negative_sum:
                total += _sum_of_negatives(loss, logits + (reference or 0.0), hit, column, plan.sample.valid, low, high)
            logits.scatter_(1, column, torch.where(hit, -torch.inf, logits.gather(1, column)))
            chunks.mask_padding_(logits, low, high)
            if reference is None:
                higher = torch.maximum(maximum, logits.amax(1))
                # a row whose chunks hold no negative so far has maximum -inf; any finite reference will do for it
                finite = higher.clamp(min=torch.finfo(x.dtype).min)
                exponentials *= torch.exp(maximum - finite)
                maximum = higher
                logits.sub_(finite[:, None])
            exponentials += logits.exp_().sum(1)

        if reference is None:
            overall = all_reduce(maximum.clone(), plan.shard_group, "max").clamp_(min=torch.finfo(x.dtype).min)
            exponentials *= torch.exp(maximum - overall)
            maximum = overall
        parts = [exponentials, target.to(wide)] + ([total] if loss.needs_negative_sum else [])
        exponentials, target, *rest = all_reduce(torch.stack(parts), plan.shard_group).unbind()
        # Without any negative the sum is zero: a very low, finite logarithm keeps every derivative zero and not NaN.
        logsumexp = (exponentials.log() + maximum).clamp(min=-1e30).to(x.dtype)
        total = rest[0].to(x.dtype) if rest else total.to(x.dtype)
        target = target.to(x.dtype) / plan.score_scale

        ctx.plan, ctx.kept, ctx.norms, ctx.kept_rows = plan, kept, norms, chunks.kept_rows
        ctx.row_sparse = [getattr(parameter, "row_sparse", False) for parameter in (weight, bias)]
        ctx.learned = learned
        ctx.save_for_backward(x, weight, bias, logsumexp, *values)
        ctx.set_materialize_grads(True)
        return logsumexp, total, target

    @staticmethod
    @once_differentiable
    @fast_float32_products()
    def backward(
        ctx: Any, grad_logsumexp: Tensor, grad_total: Tensor, grad_target: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, logsumexp, *values = ctx.saved_tensors
        plan: Plan = ctx.plan
        learned = LearnedCurve(ctx.learned, values)
        chunks = Chunks(x, weight, bias, plan, ctx.kept_rows)
        batch = x.shape[0]
        wants_x, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_x = torch.zeros_like(x) if wants_x else None
        update = getattr(weight, "row_update", None)  # an optimizer that steps inside the backward pass
        update = update if wants_weight and update is not None and update.is_alive else None
        grads = RowGradients(chunks, wants_weight, keep_all=update is None)
        sparse = SlopeFilter(chunks, logsumexp, grad_logsumexp, grad_target) if plan.gradient_filter > 0 else None
        if update is not None:
            update.begin(weight)
        slopes, shared, product = (scratch((batch * chunks.width,), x) for _ in range(3))
        for i, (low, high) in enumerate(chunks.ranges):
            n = high - low
            rows = chunks.rows(low, high)
            inverse = ctx.norms[i] if plan.loss.normalize else None
            if i < len(ctx.kept):
                scores = ctx.kept[i]
            else:
                scores = chunks.scores(low, high, rows, inverse, shared[: n * batch].view(batch, n), plan.score_scale)
            column, hit = chunks.targets(low, high)
            few = None if sparse is None else sparse.foreseen(low, high, scores, column, hit)
            if few is None:
                out, room = (buffer[: n * batch].view(batch, n) for buffer in (slopes, product))
                curve = learned.curve(plan, scores) if not plan.linear else None
                slope = _negative_gradient(
                    chunks, (low, high), scores, curve, logsumexp, grad_logsumexp, grad_total, out
                )
                if curve is not None:
                    slope.copy_(learned.chain(curve, slope, column, hit))
                slope.scatter_(1, column, torch.where(hit, grad_target[:, None], slope.gather(1, column)))
                if chunks.centers > 1:
                    rows, scores, slope = chunks.nearest_only(rows, inverse, slope)
                    room = torch.empty_like(slope)
                few = None if sparse is None else sparse.found(slope)
            if few is not None:
                gradient, few = grads.add_few(low, high, rows, inverse, scores, few)
                if grad_x is not None:
                    grad_x += times_centers(few, rows, batch)
            else:
                gradient = grads.add(low, high, rows, inverse, scores, slope, room)
                if grad_x is not None:  # slope now carries the inverse norms
                    grad_x.addmm_(slope, rows)
            if update is not None and gradient is not None:
                valid = plan.sample.valid
                real = None if valid is None else valid[low:high].sum().to(weight.device)
                gradient = all_reduce(gradient, plan.replica_group).to(weight.device)
                update.apply(chunks.kept_ids(low, high), gradient, num_real=real)
        if update is not None:
            update.end()
            wants_weight = False
        weight_grad = grads.weight_gradient(weight, ctx.row_sparse[0]) if wants_weight else None
        wants_bias = bias is not None and ctx.needs_input_grad[2]
        bias_grad = grads.bias_gradient(bias, ctx.row_sparse[1]) if wants_bias else None
        return grad_x, weight_grad, bias_grad, None, None, *learned.grads


def _sum_of_negatives(
    loss: Loss, logits: Tensor, hit: Tensor, column: Tensor, valid: Tensor | None, low: int, high: int
) -> Tensor:
    """Sum of the negatives' logits of a chunk (or of their softplus), (B,); overwrites ``logits``."""
    addends = torch.nn.functional.softplus(logits) if loss.softplus_negatives else logits
    addends.scatter_(1, column, torch.where(hit, 0.0, addends.gather(1, column)))
    if valid is not None:
        addends.mul_(valid[low:high])
    return addends.sum(1)


def _negative_gradient(
    chunks: Chunks,
    bounds: tuple[int, int],
    scores: Tensor,
    curve: Tensor | None,
    logsumexp: Tensor,
    grad_logsumexp: Tensor,
    grad_total: Tensor,
    out: Tensor,
) -> Tensor:
    """Slopes (B, n) d loss / d cosine of a chunk's negatives, d / d logit with a ``curve``; of the target, anything."""
    plan, loss = chunks.plan, chunks.plan.loss
    logits, chain = (scores, loss.scale) if curve is None else (curve.detach(), 1.0)
    slope = chunks.mask_padding_(torch.sub(logits, logsumexp[:, None], out=out), *bounds).exp_()
    slope.mul_((grad_logsumexp * chain)[:, None])
    if loss.needs_negative_sum:
        spread = (grad_total * chain)[:, None]
        if loss.softplus_negatives:
            spread = spread * torch.sigmoid(logits)
        if plan.sample.valid is not None:
            spread = spread * plan.sample.valid[bounds[0] : bounds[1]]
        slope.add_(spread)
    return slope
