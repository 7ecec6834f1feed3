"""The targets apart: their cosines and what they add to both gradients, in float32.

In half precision p - 1 is 0 from p = 1 - 1e-3 on, and with it the gradient of everything that is learned well.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.library import differentiable, operation
from lightning_pfc.kernels.unit_rows import compute_dtype, inverse_norms, project

MOST_COMPARED = 1 << 13
"""Entries up to which a kernel compares each with each, in one launch; more are sorted."""
_LAUNCHES_OF_SORTING = 20


def _target_rows(weight: Tensor, index: Tensor | None, targets: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Centers (B, P, D) of the targets, zero where there is none, and 1 / |w| (B, P)."""
    flat = targets.flatten()
    places = flat.clamp(min=0)
    rows = weight.index_select(0, places if index is None else index.index_select(0, places)).to(compute_dtype(weight))
    inverse = inverse_norms(rows) if normalize else rows.new_ones(rows.shape[0])
    rows = rows * (flat >= 0)[:, None]
    return rows.view(*targets.shape, -1), inverse.view(targets.shape)


def _cosines_twin(x: Tensor, weight: Tensor, index: Tensor | None, targets: Tensor, normalize: bool) -> Tensor:
    if weight.shape[0] == 0 or (index is not None and index.shape[0] == 0):
        return x.new_zeros(targets.shape)
    rows, inverse = _target_rows(weight, index, targets, normalize)
    dots: Tensor = torch.linalg.vecdot(rows, x[:, None].to(rows.dtype))
    return dots * inverse


def _cosines_fake(x: Tensor, weight: Tensor, index: Tensor | None, targets: Tensor, normalize: bool) -> Tensor:
    return x.new_empty(targets.shape)


def _gradients_twin(
    x: Tensor,
    weight: Tensor,
    index: Tensor | None,
    targets: Tensor,
    grad: Tensor,
    x_grad: Tensor | None,
    row_grad: Tensor | None,
    normalize: bool,
    first: int,
    following: Tensor | None,
) -> None:
    if weight.shape[0] == 0 or (index is not None and index.shape[0] == 0):
        return
    if x_grad is not None:
        rows, inverse = _target_rows(weight, index, targets, normalize)
        x_grad += torch.bmm((grad * inverse)[:, None].to(rows.dtype), rows)[:, 0].to(x_grad.dtype)
    if row_grad is not None:
        entries = grad[:, :, None] * x[:, None]
        columns = targets.flatten() - first
        owned = (targets.flatten() >= 0) & (columns >= 0) & (columns < row_grad.shape[0])
        entries = (entries.flatten(0, 1) * owned[:, None]).to(row_grad.dtype)
        row_grad.index_add_(0, columns.clamp(0, max(0, row_grad.shape[0] - 1)), entries)


def _gradients_fake(*args: Any) -> None:
    return None


def _gradient_launches(args: Sequence[Any]) -> int:
    x_grad, row_grad, following = args[5], args[6], args[9]
    return (x_grad is not None) + (row_grad is not None) * (1 if following is not None else 2)


def links_by_sorting(targets: Tensor) -> Tensor:
    """:func:`link_equal` in plain torch: n log n steps and n numbers on the way for n = B P entries."""
    ordered, order = targets.flatten().sort(stable=True)
    later = order.roll(-1)
    linked = (ordered == ordered.roll(-1)) & (later > order)  # the last one meets the first, which is no later one
    following = torch.where(linked, later, order.shape[0])
    code = torch.where(linked.roll(1), following, -1 - following)
    return torch.empty_like(order).scatter_(0, order, code).to(torch.int32)


def _links_fake(targets: Tensor) -> Tensor:
    return targets.new_empty((targets.numel(),), dtype=torch.int32)


_cosines = operation(
    "target_cosines(Tensor x, Tensor weight, Tensor? index, Tensor targets, bool normalize) -> Tensor",
    _cosines_twin,
    _cosines_fake,
    "lightning_pfc.kernels.gpu.calls:target_cosines",
    launches=1,
)
_gradients = operation(
    "target_gradients_(Tensor x, Tensor weight, Tensor? index, Tensor targets, Tensor grad, Tensor(a!)? x_grad,"
    " Tensor(b!)? row_grad, bool normalize, int first, Tensor? following) -> ()",
    _gradients_twin,
    _gradients_fake,
    "lightning_pfc.kernels.gpu.calls:target_gradients_",
    launches=_gradient_launches,
)
_links = operation(
    "link_equal(Tensor targets) -> Tensor",
    links_by_sorting,
    _links_fake,
    "lightning_pfc.kernels.gpu.calls:link_equal",
    launches=lambda args: 1 if args[0].numel() <= MOST_COMPARED else _LAUNCHES_OF_SORTING,
)


def target_cosines(
    x: Tensor,
    weight: Tensor,
    index: Tensor | None,
    targets: Tensor,
    normalize: bool = True,
    *,
    kernels: Container[str] | None = None,
) -> Tensor:
    """Cosines of unit rows with their targets, in float32. Differentiable in ``x`` and ``weight``.

    Args:
        x: (B, D) float32, unit rows.
        weight: (c, D) centers, any floating type.
        index: (K,) int64, the rows that take part, or None for all.
        targets: (B, P) int64, places among the K rows; -1 for none.
        normalize: whether centers are divided by their length.
        kernels: which operations run as kernels, as :func:`~lightning_pfc.kernels.choice.choose` says.

    Returns:
        (B, P) float32, 0 where there is no target.
    """
    cosines: Tensor = _cosines(x, weight, index, targets, normalize, kernels=kernels)
    return cosines


def target_gradients_(
    x: Tensor,
    weight: Tensor,
    index: Tensor | None,
    targets: Tensor,
    grad: Tensor,
    x_grad: Tensor | None,
    row_grad: Tensor | None,
    normalize: bool = True,
    first: int = 0,
    following: Tensor | None = None,
    *,
    kernels: Container[str] | None = None,
) -> None:
    """Add what the targets' cosines contribute to the gradients of ``x`` and of the *unit* rows, in a fixed order.

    Args:
        x: (B, D) float32, unit rows.
        weight: (c, D) centers.
        index: (K,) int64 or None, as in :func:`target_cosines`.
        targets: (B, P) int64, as there.
        grad: (B, P) float32, derivative of the loss by each cosine; whatever it is where there is no target.
        x_grad: (B, D), added to; None for none.
        row_grad: (n, D), added to; None for none. Rows that several entries share are added up in the order of entries.
        normalize: as there.
        first: which of the K rows is the first of ``row_grad``.
        following: from :func:`link_equal`, where the same targets come with several parts of the rows; None finds it.
        kernels: as there.
    """
    _gradients(x, weight, index, targets, grad, x_grad, row_grad, normalize, first, following, kernels=kernels)


def link_equal(targets: Tensor, *, kernels: Container[str] | None = None) -> Tensor:
    """For each entry of ``targets`` (B, P) the next one with the same target, so that sums have a fixed order.

    One launch up to :data:`MOST_COMPARED` entries; more are sorted.

    Returns:
        (B P,) int32: the next entry, B P if there is none; -1 minus that for the first entry of its kind.
    """
    following: Tensor = _links(targets, kernels=kernels)
    return following


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, index, targets, ctx.normalize = inputs
    ctx.save_for_backward(x, weight, index, targets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, index, targets = ctx.saved_tensors
    x_grad = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
    count = weight.shape[0] if index is None else index.shape[0]
    wants_weight = ctx.needs_input_grad[1]
    row_grad = x.new_zeros((count, x.shape[1]), dtype=compute_dtype(weight)) if wants_weight else None
    target_gradients_(x, weight, index, targets, grad.contiguous(), x_grad, row_grad, ctx.normalize)
    weight_grad = None
    if row_grad is not None:
        rows = (weight if index is None else weight.index_select(0, index)).to(row_grad.dtype)
        if ctx.normalize:
            row_grad = project(row_grad, rows, inverse_norms(rows))
        row_grad = row_grad.to(weight.dtype)
        weight_grad = row_grad if index is None else torch.zeros_like(weight).index_add_(0, index, row_grad)
    return x_grad, weight_grad, None, None, None


differentiable(_cosines, _backward, _setup)
