"""A margin on the target's cosine and its derivative, in closed form: cos(t + m) = cos t cos m - sin t sin m."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.library import differentiable, operation


def _twin(
    cosine: Tensor, scale: float, cos_m: float, sin_m: float, offset: float, limit: float, exact: bool
) -> tuple[Tensor, Tensor]:
    inside = cosine.clamp(-limit, limit)
    sine = ((1.0 - inside) * (1.0 + inside)).clamp(min=0.0).sqrt()
    logits = scale * (inside * cos_m - sine * sin_m - offset)
    if not exact:
        return logits, torch.full_like(cosine, scale)
    slope = scale * (cos_m + inside * (sin_m / sine)) if sin_m else torch.full_like(cosine, scale * cos_m)
    return logits, torch.where(cosine == inside, slope, 0.0)


def _fake(cosine: Tensor, *margin: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(cosine), torch.empty_like(cosine)


_operation = operation(
    "margin_logits(Tensor cosine, float scale, float cos_m, float sin_m, float offset, float limit, bool exact)"
    " -> (Tensor, Tensor)",
    _twin,
    _fake,
    "lightning_pfc.kernels.gpu.vector_calls:margin_logits",
    launches=1,
)


def margin_logits(cosine: Tensor, scale: float, angle: float, offset: float, limit: float, *, exact: bool) -> Tensor:
    """Target logits ``scale (cos(t + angle) - offset)`` from their cosines cos t. Differentiable once.

    Args:
        cosine: (B,) float32.
        scale: s.
        angle: m2 in radians.
        offset: m3, of the cosine.
        limit: below 1; cosines beyond it count as that, and have no derivative.
        exact: whether the derivative is that of the value; else it is that of ``scale cos t``.
    """
    logits: Tensor = _operation(cosine, scale, math.cos(angle), math.sin(angle), offset, limit, exact)[0]
    return logits


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (slope,) = ctx.saved_tensors
    return (None if grad is None else grad * slope, *[None] * 6)


differentiable(_operation, _backward, _setup)
