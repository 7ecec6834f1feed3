"""Embeddings of length one, with their lengths, and whether anything in a batch is bad: each row is read once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.library import differentiable, operation, takes_kernels
from lightning_pfc.kernels.tiles import LARGEST_WIDTH
from lightning_pfc.kernels.unit_rows import NORM_EPS


def _twin(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    norms: Tensor = torch.linalg.vector_norm(wide, dim=1)
    # division keeps the order of a view's numbers, and what follows wants rows
    return (wide / norms.clamp(min=NORM_EPS)[:, None]).contiguous(), norms


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape, dtype=wide), x.new_empty(x.shape[:1], dtype=wide)


def _backward_twin(unit: Tensor, norms: Tensor, grad: Tensor, norm_grad: Tensor | None, dtype: torch.dtype) -> Tensor:
    length = norms.clamp(min=NORM_EPS)
    along = torch.where(norms >= NORM_EPS, torch.linalg.vecdot(unit, grad), 0.0)  # a constant divides a shorter row
    found = (grad - unit * along[:, None]) / length[:, None]
    if norm_grad is not None:
        found += unit * torch.where(norms > 0, norm_grad * length / norms, 0.0)[:, None]
    return found.to(dtype)


def _backward_fake(unit: Tensor, norms: Tensor, grad: Tensor, norm_grad: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(unit, dtype=dtype)


_forward = operation(
    "unit_embeddings(Tensor x) -> (Tensor, Tensor)",
    _twin,
    _fake,
    "lightning_pfc.kernels.gpu.vector_calls:unit_embeddings",
    launches=1,
)
_backward_operation = operation(
    "unit_embeddings_backward(Tensor unit, Tensor norms, Tensor grad, Tensor? norm_grad, ScalarType dtype) -> Tensor",
    _backward_twin,
    _backward_fake,
    "lightning_pfc.kernels.gpu.vector_calls:unit_embeddings_backward",
    launches=1,
)


def unit_embeddings(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length one in the compute dtype, and their lengths before. Differentiable.

    Args:
        x: (B, D) floating.

    Returns:
        ``x / max(|x|, 1e-12)`` (B, D) and ``|x|`` (B,), float32 (float64 for float64).
    """
    if not takes_kernels(x) or x.shape[1] > LARGEST_WIDTH:
        return _twin(x)
    unit, norms = _forward(x)
    return unit, norms


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, norm_grad: Tensor | None) -> Tensor | None:
    unit, norms = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(unit)
    norm_grad = None if norm_grad is None else norm_grad.contiguous()
    found: Tensor = _backward_operation(unit, norms, grad.contiguous(), norm_grad, ctx.dtype)
    return found


differentiable(_forward, _backward, _setup)


def _bad_twin(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    bad_label = (labels < 0) | (labels >= num_classes)
    return torch.stack([bad_label if labels.dim() == 1 else bad_label.any(1), ~x.isfinite().all(1)], 1)


def _bad_fake(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    return x.new_empty((x.shape[0], 2), dtype=torch.bool)


_bad_rows = operation(
    "bad_rows(Tensor x, Tensor labels, int num_classes) -> Tensor",
    _bad_twin,
    _bad_fake,
    "lightning_pfc.kernels.gpu.vector_calls:bad_rows",
    launches=1,
)


def bad_rows(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Which rows cannot be trained with.

    Args:
        x: (b, D) floating.
        labels: (b,) int64.
        num_classes: C.

    Returns:
        (b, 2) bool: whether the label lies outside [0, C), whether the embedding has a NaN or an infinity.
    """
    found: Tensor = _bad_rows(x, labels, num_classes)
    return found


def _columns_twin(labels: Tensor, start: int, stop: int) -> Tensor:
    return torch.where((labels >= start) & (labels < stop), labels - start, -1)


def _columns_fake(labels: Tensor, start: int, stop: int) -> Tensor:
    return torch.empty_like(labels)


_own_columns = operation(
    "own_columns(Tensor labels, int start, int stop) -> Tensor",
    _columns_twin,
    _columns_fake,
    "lightning_pfc.kernels.gpu.vector_calls:own_columns",
    launches=1,
)


def own_columns(labels: Tensor, start: int, stop: int) -> Tensor:
    """Places of ``labels`` (int64, of any shape) among the classes [start, stop); -1 for those that are elsewhere."""
    found: Tensor = _own_columns(labels, start, stop) if takes_kernels(labels) else _columns_twin(labels, start, stop)
    return found
