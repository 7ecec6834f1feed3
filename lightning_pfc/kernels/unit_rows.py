"""Class centers as the products want them: gathered, of unit length, rounded."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.library import differentiable, operation

NORM_EPS = 1e-12
"""Rows shorter than this are divided by it, as in ``torch.nn.functional.normalize``."""


def _twin(weight: Tensor, index: Tensor | None, dtype: torch.dtype, normalize: bool) -> tuple[Tensor, Tensor]:
    rows = weight if index is None else weight.index_select(0, index)
    wide = rows.to(compute_dtype(weight))
    inverse = inverse_norms(wide) if normalize else wide.new_ones(wide.shape[0])
    return (wide * inverse[:, None]).to(dtype), inverse


def _fake(weight: Tensor, index: Tensor | None, dtype: torch.dtype, normalize: bool) -> tuple[Tensor, Tensor]:
    count = weight.shape[0] if index is None else index.shape[0]
    return weight.new_empty((count, weight.shape[1]), dtype=dtype), weight.new_empty(
        (count,), dtype=compute_dtype(weight)
    )


def compute_dtype(weight: Tensor) -> torch.dtype:
    """In which rows are computed with: float32, float64 for float64."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def inverse_norms(rows: Tensor) -> Tensor:
    """1 / max(|w|, eps) of rows (n, D), (n,)."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.clamp_(min=NORM_EPS).reciprocal_()


def project(grad: Tensor, rows: Tensor, inverse: Tensor) -> Tensor:
    """The gradient (n, D) of centers from that of their unit rows: (g - u (u.g)) / |w|, with u = ``rows * inverse``.

    A row shorter than eps is scaled by a constant, so nothing is projected out of its gradient.
    """
    along = torch.linalg.vecdot(grad, rows) * inverse
    along = torch.where(inverse < 1.0 / NORM_EPS, along, 0.0)
    return (grad - rows * (along * inverse)[:, None]) * inverse[:, None]


def _project_twin(grad: Tensor, weight: Tensor, index: Tensor | None) -> None:
    rows = (weight if index is None else weight.index_select(0, index)).to(grad.dtype)
    grad.copy_(project(grad, rows, inverse_norms(rows)))


_project = operation(
    "project_rows_(Tensor(a!) grad, Tensor weight, Tensor? index) -> ()",
    _project_twin,
    lambda *args: None,
    "lightning_pfc.kernels.gpu.calls:project_rows_",
    launches=1,
)


def project_rows_(
    grad: Tensor, weight: Tensor, index: Tensor | None = None, *, kernels: Container[str] | None = None
) -> Tensor:
    """The gradient of centers from that of their unit rows, ``(g - u (u.g)) / |w|``, in place.

    Args:
        grad: (K, D) float32, contiguous; g, and then the result.
        weight: (c, D) float32, bfloat16 or float16, the centers w; its rows must be contiguous.
        index: (K,) int64 rows, or None for all c.
        kernels: which operations run as kernels, as :func:`~lightning_pfc.kernels.choice.choose` says.

    Returns:
        ``grad``.
    """
    _project(grad, weight, index, kernels=kernels)
    return grad


_operation = operation(
    "gather_normalize_round(Tensor weight, Tensor? index, ScalarType dtype, bool normalize) -> (Tensor, Tensor)",
    _twin,
    _fake,
    "lightning_pfc.kernels.gpu.calls:gather_normalize_round",
    launches=1,
)


def gather_normalize_round(
    weight: Tensor,
    index: Tensor | None,
    dtype: torch.dtype,
    normalize: bool = True,
    *,
    kernels: Container[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sampled centers, of unit length in float32, then rounded; every row is read once. Differentiable in ``weight``.

    Args:
        weight: (c, D) float32, bfloat16 or float16; its rows must be contiguous.
        index: (K,) int64 rows, or None for all c.
        dtype: of the result.
        normalize: whether rows are divided by their length; if not, they are gathered and rounded only.
        kernels: which operations run as kernels, as :func:`~lightning_pfc.kernels.choice.choose` says.

    Returns:
        The rows (K, D) in ``dtype``, and 1 / max(|w|, 1e-12) (K,) in float32 (ones without ``normalize``).
    """
    unit, inverse = _operation(weight, index, dtype, normalize, kernels=kernels)
    return unit, inverse


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weight, index, _, ctx.normalize = inputs
    ctx.save_for_backward(weight, index, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_inverse: Tensor | None) -> tuple[Tensor | None, ...]:
    weight, index, inverse = ctx.saved_tensors
    rows = (weight if index is None else weight.index_select(0, index)).to(inverse.dtype)
    total = torch.zeros_like(rows)
    if grad is not None:
        wide = grad.to(inverse.dtype)
        total += project(wide, rows, inverse) if ctx.normalize else wide
    if grad_inverse is not None and ctx.normalize:
        moves = torch.where(inverse < 1.0 / NORM_EPS, grad_inverse * inverse**3, 0.0)
        total -= rows * moves[:, None]
    total = total.to(weight.dtype)
    return (total if index is None else torch.zeros_like(weight).index_add_(0, index, total)), None, None, None


differentiable(_operation, _backward, _setup)
