# ruff: noqa: D102
"""A dense sharded head, built as well as the published ones are: what a streaming head has to beat.

The margin leaves no graph, the softmax is computed in place of the logits, and the gradient takes their place after it:
one matrix of batch x classes is held, and no more. The gradient and the momentum are dense, one row for every class of
the shard.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class DenseShardedHead(nn.Module):
    """ArcFace with the gradient passed straight through the margin, over classes split evenly across the ranks."""

    def __init__(self, weight: Tensor, first_class: int, rate: float, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.first_class, self.rate, self.scale, self.margin = first_class, rate, scale, margin
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.world_size > 1:
            embeddings, labels = _Gather.apply(embeddings), _gather(labels)
        local = labels - self.first_class
        owned = ((local >= 0) & (local < self.weight.shape[0])).nonzero()[:, 0]
        column = local[owned]
        weight: Tensor = self.weight
        if self.rate < 1:
            index = self.draw(column)
            column = torch.searchsorted(index, column)
            weight = weight.index_select(0, index)
        cosine = F.linear(F.normalize(embeddings), F.normalize(weight))
        return _MarginSoftmax.apply(cosine, owned, column, self.scale, self.margin, self.world_size)

    @torch.no_grad()
    def draw(self, column: Tensor) -> Tensor:
        """The targets and random others up to rate x classes, by the largest of a random number a class; ascending."""
        score = torch.rand(self.weight.shape[0])
        score[column] = 2.0
        return score.topk(max(int(self.rate * self.weight.shape[0]), column.unique().numel())).indices.sort().values


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cosine: Tensor, owned: Tensor, column: Tensor, scale: float, margin: float, world_size: int
    ) -> Tensor:
        logits = cosine.detach()  # nobody else reads the cosines again, so they may be overwritten
        target = logits[owned, column].clamp_(-1, 1)
        logits[owned, column] = target.mul(math.cos(margin)) - (1 - target.square()).sqrt_() * math.sin(margin)
        logits.mul_(scale)
        top = logits.amax(1, keepdim=True)
        if world_size > 1:
            dist.all_reduce(top, dist.ReduceOp.MAX)
        sums = torch.zeros(2, logits.shape[0])
        sums[1, owned] = logits[owned, column] - top[owned, 0]
        probability = logits.sub_(top).exp_()
        torch.sum(probability, 1, out=sums[0])
        if world_size > 1:
            dist.all_reduce(sums)
        probability.div_(sums[0][:, None])
        ctx.save_for_backward(probability, owned, column)
        ctx.factor = scale / logits.shape[0]
        return (sums[0].log() - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        probability, owned, column = ctx.saved_tensors
        probability[owned, column] -= 1
        return probability.mul_(grad * ctx.factor), None, None, None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        parts = list(grad.contiguous().chunk(dist.get_world_size()))
        for rank, part in enumerate(parts):
            dist.reduce(part, rank)
        return parts[dist.get_rank()] * dist.get_world_size()


def _gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
