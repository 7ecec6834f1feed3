"""Losses whose negatives' logits are a curve of the cosine, perhaps with parameters of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.heads.plan import Plan


class LearnedCurve:
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
        """From ``slope`` = d loss / d logit to d loss / d cosine (B, n); adds the parameters' part to ``grads``."""
        assert self.scores is not None
        if self.leaves:  # the target is no negative: nothing of it may reach the parameters
            slope = slope.scatter(1, column, torch.where(hit, 0.0, slope.gather(1, column)))
        result, *own = torch.autograd.grad(curve, [self.scores, *self.leaves.values()], slope, allow_unused=True)
        for total, part in zip(self.grads, own, strict=True):
            if part is not None:
                total += part
        return torch.zeros_like(slope) if result is None else result
