"""The engine for everything: forward and backward over the sampled classes in chunks, never the whole logits.

Shapes as in :mod:`lightning_pfc.heads.softmax.spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_pfc.distributed.class_rows import is_row_sparse
from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.softmax.center_gradients import center_grad_sink
from lightning_pfc.heads.softmax.class_chunks import Chunk, ClassChunks
from lightning_pfc.heads.softmax.cosine_gradient import CosineGradients, SumGradients
from lightning_pfc.heads.softmax.kept_scores import KeptScores
from lightning_pfc.heads.softmax.learned_logits import LearnedLogits
from lightning_pfc.heads.softmax.online_logsumexp import OnlineLogSumExp
from lightning_pfc.heads.softmax.spec import SampledRows, SoftmaxSpec, SoftmaxSums
from lightning_pfc.heads.softmax.target_rank import own_target_cosines
from lightning_pfc.kernels.library import using
from lightning_pfc.kernels.sums import wide_dtype
from lightning_pfc.matmul.in_precision import products_in


def streamed_softmax(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: SampledRows,
    spec: SoftmaxSpec,
    learned: Mapping[str, Tensor],
) -> SoftmaxSums:
    """:func:`~lightning_pfc.heads.softmax.sharded_softmax` for any loss, any batch and any number of classes."""
    logsumexp, total, cosine = _StreamedSoftmax.apply(
        x, weight, bias, targets, rows, spec, tuple(learned), *learned.values()
    )
    return SoftmaxSums(logsumexp, total if spec.sums_logits else None, cosine)


class _StreamedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        spec: SoftmaxSpec = args[4]
        with products_in(spec.precision, x.device):
            return _forward(ctx, x, *args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with products_in(ctx.spec.precision, grads[0].device), using(ctx.spec.kernels):
            return _backward(ctx, *grads)


def _forward(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: SampledRows,
    spec: SoftmaxSpec,
    names: tuple[str, ...],
    *values: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = ClassChunks(x, weight, bias, targets, rows, spec)
    kept, buffer = KeptScores(chunks), chunks.buffer()
    learned = dict(zip(names, values, strict=True))
    exponentials = OnlineLogSumExp(spec.reference, x)
    total = x.new_zeros(x.shape[0], dtype=wide_dtype(x))
    cosine = x.new_zeros(targets.shape)
    rounded = spec.precision != "float32"
    if rounded:  # the targets apart: of float32 rows
        cosine += spec.score_scale * own_target_cosines(x, weight, bias, targets, rows, spec)
    for chunk in kept.compute():
        if not rounded:
            cosine += chunk.targets.take(chunk.scores)
        logits = chunk.scores if spec.curve is None else spec.curve(chunk.scores, learned)
        logits = torch.sub(logits, exponentials.offset, out=chunks.view(buffer, chunk.low, chunk.high))
        if spec.sums_logits:
            total += _sum_of_negatives(logits + exponentials.offset, chunk, rows.valid, spec.softplus)
        exponentials.add_(chunk.add_offsets_(chunk.targets.fill_(logits, -torch.inf)))
    exponentials.agree_on_offset_(spec.shard_group)
    parts = [exponentials.sums[None], cosine.t().to(total.dtype), total[None]][: 2 + spec.sums_logits]
    sums = all_reduce(torch.cat(parts), spec.shard_group)  # (P + 1 or 2, B)
    logsumexp = exponentials.logarithm(sums[0])
    cosine = sums[1 : 1 + targets.shape[1]].t().to(x.dtype) / spec.score_scale
    total = sums[-1].to(x.dtype) if spec.sums_logits else total.to(x.dtype)

    ctx.rows, ctx.spec, ctx.names, ctx.stored_index = rows, spec, names, chunks.stored_index
    ctx.row_sparse = tuple(is_row_sparse(parameter) for parameter in (weight, bias))
    ctx.save_for_backward(x, weight, bias, targets, logsumexp, *kept.tensors, *values)
    return logsumexp, total, cosine


def _backward(ctx: Any, logsumexp_grad: Tensor, sum_grad: Tensor, target_grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, targets, logsumexp, scores, norms, *values = ctx.saved_tensors
    chunks = ClassChunks(x, weight, bias, targets, ctx.rows, ctx.spec, ctx.stored_index)
    learned = None
    if ctx.spec.curve is not None:
        learned = LearnedLogits(ctx.spec.curve, dict(zip(ctx.names, values, strict=True)))
    cos_gradients = CosineGradients(chunks, SumGradients(logsumexp, logsumexp_grad, sum_grad, target_grad), learned)
    sink = center_grad_sink(chunks, ctx.row_sparse, wanted=ctx.needs_input_grad[1])
    x_grad = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
    for chunk in KeptScores(chunks, (scores, norms)).replay():
        cos_grad = cos_gradients.of(chunk)
        if x_grad is not None:
            cos_grad.add_to_embeddings_(x_grad)
        sink.add(chunk, cos_grad)
    weight_grad = sink.weight_grad()
    bias_grad = sink.bias_grad() if ctx.needs_input_grad[2] else None
    return x_grad, weight_grad, bias_grad, None, None, None, None, *(learned.grads if learned else ())


def _sum_of_negatives(logits: Tensor, chunk: Chunk, valid: Tensor | None, softplus: bool) -> Tensor:
    """Sum of the negatives' logits of a chunk (or of their softplus), (B,); overwrites ``logits``."""
    addends = chunk.targets.fill_(torch.nn.functional.softplus(logits) if softplus else logits, 0.0)
    if valid is not None:
        addends.mul_(valid[chunk.low : chunk.high])
    return addends.sum(1)
