"""The few collectives of the head: identity without a group, one place for torch's changing names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# torch 2.14 renamed `*_tensor` to `*_single`; both do the same.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_gather_rows(x: Tensor, world_size: int, group: dist.ProcessGroup | None) -> Tensor:
    """Stack ``x`` (n, ...) of every rank to (W n, ...). One all-gather; every rank must bring the same shape."""
    if group is None:
        return x
    out = x.new_empty((world_size * x.shape[0], *x.shape[1:]))
    _all_gather(out, x.contiguous(), group=group)
    return out


def all_gather_uneven(own: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Stack ``own`` (b, ...) of every rank to (sum of ``sizes``, ...), without gradient. One all-gather.

    Args:
        own: this rank's rows.
        sizes: how many every rank has.
        group: None for one process.
    """
    padded = own.new_zeros((max(sizes), *own.shape[1:]))
    padded[: own.shape[0]] = own
    return _trim(all_gather_rows(padded, len(sizes), group), sizes)


def reduce_scatter_rows(x: Tensor, world_size: int, group: dist.ProcessGroup | None) -> Tensor:
    """Sum ``x`` (W n, ...) over the ranks and keep the n rows of this one. One reduce-scatter."""
    if group is None:
        return x
    out = x.new_empty((x.shape[0] // world_size, *x.shape[1:]))
    _reduce_scatter(out, x.contiguous(), group=group)
    return out


def all_reduce(x: Tensor, group: dist.ProcessGroup | None, op: str = "sum") -> Tensor:
    """Reduce ``x`` over the group, in place, and return it. ``op`` is "sum" or "max"."""
    if group is not None:
        dist.all_reduce(x, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=group)
    return x


def gather_batch(
    x: Tensor,  # (b, D)
    labels: Tensor,  # (b,) or (b, P) int64
    sizes: Sequence[int],
    group: dist.ProcessGroup | None,
    grad_factor: float,
) -> tuple[Tensor, Tensor]:
    """Bring the embeddings and labels of all ranks together, in rank order.

    One all-gather forward (embeddings and labels travel in one buffer of bytes), one reduce-scatter backward.

    Args:
        x: this rank's embeddings, (b, D) floating.
        labels: this rank's labels, (b,) or (b, P) int64.
        sizes: the batch size of every rank of the group; they may differ.
        group: the process group, None for one process.
        grad_factor: what the embeddings' gradient is multiplied by: the number of ranks that DDP will average over.

    Returns:
        (B, D) embeddings in the dtype of ``x``, differentiable, and (B,) or (B, P) int64 labels; ``B = sum(sizes)``.
    """
    if group is None:
        return x, labels.contiguous()  # as gathered ones are: kernels read them as they lie
    gathered: tuple[Tensor, Tensor] = _GatherBatch.apply(x, labels, tuple(sizes), group, grad_factor)
    return gathered


def shared_gradient(x: Tensor, ranks: int) -> Tensor:
    """``x`` with its gradient divided by ``ranks``: of a value that all ranks compute, the gradients are summed."""
    return x if ranks == 1 or not x.requires_grad else x.detach() + (x - x.detach()) / ranks


def sum_over_replicas(x: Tensor, group: dist.ProcessGroup | None, shard_size: int) -> Tensor:
    """``x``, which each copy of a head has of its own rows, with the others' values added but not their gradient.

    Args:
        x: () the same on the ``shard_size`` ranks of a copy.
        group: all ranks. One all-reduce of a number.
        shard_size: how many ranks share a copy.
    """
    others = all_reduce(x.detach().clone(), group) / shard_size - x.detach()
    return x + others


def summed_gradient(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``x``, with its gradient added up over the group: one all-reduce backward."""
    if group is None:
        return x
    summed: Tensor = _SummedGradient.apply(x, group)
    return summed


class _SummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad.clone(), ctx.group), None


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, labels: Tensor, sizes: tuple[int, ...], group: dist.ProcessGroup, grad_factor: float
    ) -> tuple[Tensor, Tensor]:
        ctx.sizes, ctx.group, ctx.grad_factor, ctx.own = sizes, group, grad_factor, x.shape[0]
        longest, width = max(sizes), x.shape[1] * x.element_size()
        own = labels[:, None] if labels.dim() == 1 else labels
        packet = torch.zeros((longest, width + 8 * own.shape[1]), dtype=torch.uint8, device=x.device)
        packet[: x.shape[0], :width] = x.contiguous().view(torch.uint8)
        packet[: x.shape[0], width:] = own.contiguous().view(torch.uint8)
        packets = _trim(all_gather_rows(packet, len(sizes), group), sizes)
        all_labels = packets[:, width:].contiguous().view(torch.int64).view(-1, *labels.shape[1:])
        ctx.mark_non_differentiable(all_labels)
        return packets[:, :width].contiguous().view(x.dtype), all_labels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        summed = reduce_scatter_rows(_pad(grad, ctx.sizes), len(ctx.sizes), ctx.group)
        return summed[: ctx.own] * ctx.grad_factor, None, None, None, None


def _trim(padded: Tensor, sizes: Sequence[int]) -> Tensor:
    """Drop the padding of shorter ranks: (W longest, ...) -> (sum(sizes), ...). Sizes are host numbers, so no sync."""
    longest = max(sizes)
    if all(size == longest for size in sizes):
        return padded
    return torch.cat([padded[r * longest : r * longest + size] for r, size in enumerate(sizes)])


def _pad(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The inverse of :func:`_trim`, with zeros."""
    longest = max(sizes)
    if all(size == longest for size in sizes):
        return rows
    out = rows.new_zeros((len(sizes) * longest, *rows.shape[1:]))
    for r, part in enumerate(torch.split(rows, list(sizes))):
        out[r * longest : r * longest + part.shape[0]] = part
    return out
