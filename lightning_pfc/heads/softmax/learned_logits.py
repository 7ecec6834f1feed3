"""Negatives whose logits are a curve of the cosine, perhaps with parameters of its own, and the way back through it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_pfc.heads.softmax.spec import LogitCurve
from lightning_pfc.heads.softmax.targets import ChunkTargets


class LearnedLogits:
    """Differentiates a curve by the cosines and by the parameters, a chunk at a time.

    Args:
        curve: see :class:`~lightning_pfc.heads.softmax.spec.SoftmaxSpec`.
        parameters: by name.

    Attributes:
        grads: the parameters' gradients so far, in their order.
    """

    def __init__(self, curve: LogitCurve, parameters: Mapping[str, Tensor]) -> None:
        self._curve = curve
        self._leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        self.grads = [torch.zeros_like(value) for value in parameters.values()]
        self._cosines: Tensor | None = None
        self._logits: Tensor | None = None

    def forward(self, cosines: Tensor) -> Tensor:
        """The negatives' logits (B, n) of a chunk, with a graph that :meth:`vjp` goes back through."""
        with torch.enable_grad():
            self._cosines = cosines.detach().requires_grad_()
            self._logits = self._curve(self._cosines, self._leaves)
        return self._logits.detach()

    def vjp(self, logit_grad: Tensor, targets: ChunkTargets) -> Tensor:
        """From d loss / d logit to d loss / d cosine (B, n); adds the parameters' part to ``grads``."""
        assert self._cosines is not None
        assert self._logits is not None
        if self._leaves:  # a target is no negative: nothing of it may reach the parameters
            logit_grad = targets.fill_(logit_grad.clone(), 0.0)
        leaves = [self._cosines, *self._leaves.values()]
        cos_grad, *own = torch.autograd.grad(self._logits, leaves, logit_grad, allow_unused=True)
        for total, part in zip(self.grads, own, strict=True):
            if part is not None:
                total += part
        self._logits = None
        return torch.zeros_like(logit_grad) if cos_grad is None else cos_grad
