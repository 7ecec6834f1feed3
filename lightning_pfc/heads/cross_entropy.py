"""Streaming, sharded softmax sums: forward and backward over the sampled classes in chunks, never the whole logits.

Shapes: B rows of the gathered batch, k sampled classes of this rank, n classes of one chunk, D embedding.

For every row the loss needs three numbers: the log-sum-exp of its negatives' logits over all ranks, optionally the sum of
those logits, and the target's cosine. All else about a loss happens on vectors of B numbers, in ordinary autograd, outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.memory import huge_pages
from lightning_pfc.heads.sampling import Sample
from lightning_pfc.losses.base import Loss, Rows, State

NORM_EPS = 1e-12  # as torch.nn.functional.normalize
# exp(z - reference) stays a normal float32 for every logit in [-bound, bound] when the reference is bound - 60 and the
# bound is at most this; a sum of 10^9 terms stays finite. Then no maximum is needed: one pass and one collective less.
_LARGEST_FIXED_BOUND = 73.0
_CHUNK_ELEMENTS = 1 << 19  # logits of one chunk: 2 MiB of float32, measured best on a CPU with 1 MiB of L2 a core


class Sums(NamedTuple):
    """Per row, over all ranks; each (B,) in the compute dtype, the same on every rank."""

    negative_logsumexp: Tensor
    negative_sum: Tensor | None
    target_cosine: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about a pass over the classes but its tensors with gradient.

    Attributes:
        loss, rows, state: the loss and what it knows of the rows.
        sample: the classes of this rank that take part.
        shard_group: the ranks that share the classes; None for one.
        replica_group: the ranks that hold copies of this shard, over which row gradients are summed; None for none.
        memory_budget: bytes of logits kept from forward to backward; chunks beyond it are computed again.
        chunk_size: classes per chunk; None chooses.
    """

    loss: Loss
    rows: Rows
    state: State
    sample: Sample
    shard_group: dist.ProcessGroup | None = None
    replica_group: dist.ProcessGroup | None = None
    memory_budget: int = 512 << 20
    chunk_size: int | None = None

    @property
    def linear(self) -> bool:
        """Whether a negative's logit is just ``scale * cosine``."""
        return self.loss.linear_negatives and self.loss.interclass_filter is None

    @property
    def score_scale(self) -> float:
        """What the kept scores are: ``scale * cosine`` where that is the negatives' logit, else the bare cosine."""
        return self.loss.scale if self.linear else 1.0

    @property
    def reference(self) -> float | None:
        """The fixed reference of the exponentials, where the logits are bounded well enough for one."""
        bound = self.loss.logit_bound
        return None if bound is None or bound > _LARGEST_FIXED_BOUND else bound - 60.0

    def chunks(self, batch: int, num_rows: int) -> Iterator[tuple[int, int]]:
        """Ranges of sampled classes, in order."""
        size = self.chunk_size or max(256, min(4096, _CHUNK_ELEMENTS // max(batch, 1)))
        for low in range(0, num_rows, size):
            yield low, min(low + size, num_rows)


def sharded_softmax_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, learned: tuple[str, ...] = ()
) -> Sums:
    """The sums of a softmax over classes that are sharded over ranks.

    One all-reduce of two or three numbers a row over ``shard_group`` forward (and one maximum before it where the logits
    have no bound); none backward, where only the copies of a replicated head add their row gradients. The gradient of ``x``
    is this rank's share (its classes only): the gather's backward sums it over the ranks.

    Args:
        x: (B, D) float32 or float64, unit rows for a loss with ``normalize``; the same on every rank of ``shard_group``.
        weight: (c, D) this rank's centers, any floating dtype; rows are brought to the dtype of ``x`` chunk by chunk.
        bias: (c,) or None.
        plan: the rest.
        learned: which tensors of ``plan.state`` are parameters; like ``x``, they get this rank's share of the gradient.

    Returns:
        :class:`Sums`. The gradient of ``weight`` is row-sparse (COO) where ``weight.row_sparse`` is set, dense otherwise.
    """
    logsumexp, total, target = _SoftmaxSums.apply(x, weight, bias, plan, learned, *(plan.state[n] for n in learned))
    return Sums(logsumexp, total if plan.loss.needs_negative_sum else None, target)


def target_cosines(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The targets' cosines (B,) alone, without gradient, for losses that need them first. One all-reduce of (B,)."""
    with torch.no_grad():
        columns = plan.sample.columns
        local = columns.clamp(min=0)
        ids = local if plan.sample.index is None else plan.sample.index[local]
        rows = weight.index_select(0, ids).to(x.dtype)
        value = (rows * x).sum(1)
        if plan.loss.normalize:
            value /= rows.norm(dim=1).clamp(min=NORM_EPS)
        if bias is not None:
            value += bias.index_select(0, ids).to(x.dtype)
        return all_reduce(torch.where(columns >= 0, value, 0.0), plan.shard_group)


class _Chunks:
    """Computes the scores of a chunk of classes, in buffers that all chunks share."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> None:
        self.x, self.weight, self.bias, self.plan = x, weight, bias, plan
        self.index = plan.sample.index
        self.num_rows = weight.shape[0] if self.index is None else self.index.shape[0]
        self.ranges = list(plan.chunks(x.shape[0], self.num_rows))
        self.width = max((high - low for low, high in self.ranges), default=0)
        gathers = self.index is not None or weight.dtype != x.dtype
        self._rows = x.new_empty((self.width, x.shape[1])) if gathers else None
        self._stored = x.new_empty((self.width, x.shape[1]), dtype=weight.dtype) if weight.dtype != x.dtype else None
        padding = plan.sample.valid
        self._pad = None if padding is None else torch.where(padding, 0.0, -torch.inf).to(x.dtype)

    def rows(self, low: int, high: int) -> Tensor:
        """Centers (n, D) of a chunk in the compute dtype: a view where it can be one."""
        if self._rows is None:
            return self.weight[low:high]
        out = self._rows[: high - low]
        if self.index is None:
            return out.copy_(self.weight[low:high])
        if self._stored is None:
            return torch.index_select(self.weight, 0, self.index[low:high], out=out)
        return out.copy_(torch.index_select(self.weight, 0, self.index[low:high], out=self._stored[: high - low]))

    def inverse_norms(self, rows: Tensor) -> Tensor:
        """1 / max(|w|, eps) of a chunk, (n,)."""
        return torch.linalg.vector_norm(rows, dim=1).clamp_(min=NORM_EPS).reciprocal_()

    def scores(
        self, low: int, high: int, rows: Tensor, inverse: Tensor | None, out: Tensor, scale: float = 1.0
    ) -> Tensor:
        """``scale`` times the cosines (or the dot products plus bias) of a chunk, into ``out`` (B, n)."""
        torch.mm(self.x, rows.t(), out=out)
        if inverse is not None:
            return out.mul_(inverse * scale)
        if self.bias is not None:
            ids = slice(low, high) if self.index is None else self.index[low:high]
            out.add_(self.bias[ids].to(out.dtype))
        return out if scale == 1.0 else out.mul_(scale)

    def targets(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """(B, 1) columns within the chunk, and whether the row's target is there."""
        columns = self.plan.sample.columns
        return (columns - low).clamp(0, high - low - 1)[:, None], ((columns >= low) & (columns < high))[:, None]

    def mask_padding_(self, logits: Tensor, low: int, high: int) -> Tensor:
        """Set the logits of padding to -inf, in place."""
        return logits if self._pad is None else logits.add_(self._pad[low:high])


def chunk_cosines(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (low, high, cosines (B, n)) for every chunk of classes; the buffer is reused, so take what you need from it."""
    chunks = _Chunks(x, weight, bias, plan)
    buffer = x.new_empty(x.shape[0] * chunks.width)
    for low, high in chunks.ranges:
        rows = chunks.rows(low, high)
        inverse = chunks.inverse_norms(rows) if plan.loss.normalize else None
        out = buffer[: (high - low) * x.shape[0]].view(x.shape[0], high - low)
        yield low, high, chunks.scores(low, high, rows, inverse, out)


class _SoftmaxSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, learned: tuple[str, ...], *values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, reference = plan.loss, plan.reference
        chunks = _Chunks(x, weight, bias, plan)
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
        store = huge_pages(x.new_empty(sum(high - low for low, high in chunks.ranges[:keep]) * batch))
        shared, scratch = (x.new_empty(batch * chunks.width) for _ in range(2))
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
            logits = scratch[: n * batch].view(batch, n)
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

        ctx.plan, ctx.kept, ctx.norms = plan, kept, norms
        ctx.row_sparse = [getattr(parameter, "row_sparse", False) for parameter in (weight, bias)]
        ctx.learned = learned
        ctx.save_for_backward(x, weight, bias, logsumexp, *values)
        ctx.set_materialize_grads(True)
        return logsumexp, total, target

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logsumexp: Tensor, grad_total: Tensor, grad_target: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, logsumexp, *values = ctx.saved_tensors
        plan: Plan = ctx.plan
        learned = _Learned(ctx.learned, values)
        chunks = _Chunks(x, weight, bias, plan)
        batch = x.shape[0]
        wants_x, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_x = torch.zeros_like(x) if wants_x else None
        grads = _RowGradients(chunks, wants_weight)
        scratch, shared, product = (x.new_empty(batch * chunks.width) for _ in range(3))
        for i, (low, high) in enumerate(chunks.ranges):
            n = high - low
            rows = chunks.rows(low, high)
            inverse = ctx.norms[i] if plan.loss.normalize else None
            if i < len(ctx.kept):
                scores = ctx.kept[i]
            else:
                scores = chunks.scores(low, high, rows, inverse, shared[: n * batch].view(batch, n), plan.score_scale)
            out = scratch[: n * batch].view(batch, n)
            column, hit = chunks.targets(low, high)
            curve = learned.curve(plan, scores) if not plan.linear else None
            slope = _negative_gradient(chunks, (low, high), scores, curve, logsumexp, grad_logsumexp, grad_total, out)
            if curve is not None:
                slope.copy_(learned.chain(curve, slope, column, hit))
            slope.scatter_(1, column, torch.where(hit, grad_target[:, None], slope.gather(1, column)))
            grads.add(low, high, rows, inverse, scores, slope, product[: n * batch].view(batch, n))
            if grad_x is not None:  # slope now carries the inverse norms
                grad_x.addmm_(slope, rows)
        weight_grad = grads.weight_gradient(weight, ctx.row_sparse[0]) if wants_weight else None
        wants_bias = bias is not None and ctx.needs_input_grad[2]
        bias_grad = grads.bias_gradient(bias, ctx.row_sparse[1]) if wants_bias else None
        return grad_x, weight_grad, bias_grad, None, None, *learned.grads


class _Learned:
    """Differentiates a loss's curve ``negative_logits`` by the cosines and by the loss's own parameters."""

    def __init__(self, names: tuple[str, ...], values: list[Tensor]) -> None:
        self.leaves = {name: value.detach().requires_grad_() for name, value in zip(names, values, strict=True)}
        self.grads = [torch.zeros_like(value) for value in values]
        self.scores: Tensor | None = None

    def curve(self, plan: Plan, scores: Tensor) -> Tensor:
        """The negatives' logits (B, n) of a chunk, with a graph that :meth:`chain` goes back through."""
        with torch.enable_grad():
            self.scores = scores.detach().requires_grad_()
            return plan.loss.negative_logits(self.scores, plan.rows, plan.state | self.leaves)

    def chain(self, curve: Tensor, slope: Tensor, column: Tensor, hit: Tensor) -> Tensor:
        """d loss / d cosine (B, n) from ``slope`` = d loss / d logit; the parameters' gradients are added to ``grads``."""
        assert self.scores is not None
        if self.leaves:  # the target is no negative: nothing of it may reach the parameters
            slope = slope.scatter(1, column, torch.where(hit, 0.0, slope.gather(1, column)))
        result, *own = torch.autograd.grad(curve, [self.scores, *self.leaves.values()], slope, allow_unused=True)
        for total, part in zip(self.grads, own, strict=True):
            if part is not None:
                total += part
        return torch.zeros_like(slope) if result is None else result


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
    chunks: _Chunks,
    bounds: tuple[int, int],
    scores: Tensor,
    curve: Tensor | None,
    logsumexp: Tensor,
    grad_logsumexp: Tensor,
    grad_total: Tensor,
    out: Tensor,
) -> Tensor:
    """d loss / d cosine (B, n) of a chunk's negatives (d / d logit with a ``curve``); the target's entry is anything."""
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


class _RowGradients:
    """Collects the centers' gradients chunk by chunk, straight into their final storage."""

    def __init__(self, chunks: _Chunks, wanted: bool) -> None:
        self.chunks = chunks
        x = chunks.x
        self.values = huge_pages(x.new_empty((chunks.num_rows, x.shape[1]))) if wanted else None
        self.bias = x.new_empty(chunks.num_rows) if chunks.bias is not None else None

    def add(
        self, low: int, high: int, rows: Tensor, inverse: Tensor | None, scores: Tensor, slope: Tensor, product: Tensor
    ) -> None:
        """Gradient of a chunk's rows from ``slope`` = d loss / d cosine (B, n), which is left multiplied by 1/|w|.

        With ``u = w/|w|`` and ``g = sum_i slope_i x_i``: ``dw = (g - u (u.g)) / |w|`` and ``u.g = sum_i slope_i cos_i``.
        """
        if self.bias is not None:
            torch.sum(slope, 0, out=self.bias[low:high])
        if inverse is not None:
            slope.mul_(inverse)
        if self.values is None:
            return
        out = self.values[low:high]
        if inverse is None:
            torch.mm(slope.t(), self.chunks.x, out=out)
            return
        along = torch.mul(slope, scores, out=product).sum(0).div_(self.chunks.plan.score_scale)
        # a row shorter than eps is scaled by a constant, so nothing is projected out of its gradient
        along = torch.where(inverse < 1.0 / NORM_EPS, along, 0.0)
        torch.mul(rows, (along * inverse).neg_()[:, None], out=out)
        out.addmm_(slope.t(), self.chunks.x)

    def weight_gradient(self, weight: Tensor, row_sparse: bool) -> Tensor:
        """The centers' gradient as autograd wants it: dense like ``weight``, or COO over the sampled rows."""
        assert self.values is not None
        return self._gradient(self.values, weight, row_sparse)

    def bias_gradient(self, bias: Tensor, row_sparse: bool) -> Tensor:
        """The same for the bias."""
        assert self.bias is not None
        return self._gradient(self.bias, bias, row_sparse)

    def _gradient(self, values: Tensor, parameter: Tensor, row_sparse: bool) -> Tensor:
        plan, index = self.chunks.plan, self.chunks.index
        values = all_reduce(values, plan.replica_group).to(parameter.dtype)
        if row_sparse:
            ids = torch.arange(parameter.shape[0], device=parameter.device) if index is None else index
            # Ascending and distinct (but for padding), so nothing is left to coalesce.
            return torch.sparse_coo_tensor(
                ids[None], values, parameter.shape, is_coalesced=plan.sample.valid is None, check_invariants=False
            )
        return values if index is None else torch.zeros_like(parameter).index_add_(0, index, values)
