"""Starts the kernels for the rows of a batch and for vectors of B numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.kernels.gpu import vectors
from lightning_pfc.kernels.gpu.calls import blocks
from lightning_pfc.kernels.gpu.layout import side_by_side
from lightning_pfc.kernels.launching import launch
from lightning_pfc.kernels.sums import NO_NEGATIVES
from lightning_pfc.kernels.tiles import row_tile
from lightning_pfc.kernels.unit_rows import NORM_EPS

_BLOCK = 128


def unit_embeddings(x: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`lightning_pfc.kernels.unit_embeddings.unit_embeddings`."""
    x = side_by_side(x)
    count, width = x.shape
    unit = x.new_empty((count, width), dtype=torch.float32)
    norms, tile = x.new_empty((count,), dtype=torch.float32), row_tile(width)
    launch(
        vectors.unit_embeddings, (blocks(count, tile.rows),), x, unit, norms, count, width, x.stride(0), NORM_EPS,
        ROWS=tile.rows, WIDTH=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return unit, norms


def unit_embeddings_backward(
    unit: Tensor, norms: Tensor, grad: Tensor, norm_grad: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See :func:`lightning_pfc.kernels.unit_embeddings.unit_embeddings`."""
    unit, norms, grad = unit.contiguous(), norms.contiguous(), grad.contiguous()
    norm_grad = None if norm_grad is None else norm_grad.contiguous()
    count, width = unit.shape
    out, tile = torch.empty_like(unit, dtype=dtype), row_tile(width, 2)
    launch(
        vectors.unit_embeddings_backward, (blocks(count, tile.rows),), unit, norms, grad,
        norms if norm_grad is None else norm_grad, out, count, width, NORM_EPS, HAS_NORM_GRAD=norm_grad is not None,
        ROWS=tile.rows, WIDTH=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return out


def bad_rows(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """See :func:`lightning_pfc.kernels.unit_embeddings.bad_rows`."""
    x, labels = side_by_side(x), labels.contiguous()
    count, width = x.shape
    out, tile = x.new_empty((count, 2), dtype=torch.bool), row_tile(width)
    each = labels.numel() // max(1, count)
    launch(
        vectors.bad_rows, (blocks(count, tile.rows),), x, labels, out, count, each, num_classes, width, x.stride(0),
        ROWS=tile.rows, WIDTH=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return out


def own_columns(labels: Tensor, start: int, stop: int) -> Tensor:
    """See :func:`lightning_pfc.kernels.unit_embeddings.own_columns`."""
    labels = labels.contiguous()
    out, count = torch.empty_like(labels), labels.numel()
    launch(vectors.own_columns, (blocks(count, _BLOCK),), labels, out, count, start, stop, BLOCK=_BLOCK, num_warps=4)
    return out


def pack_sums(sums: Tensor, cosine: Tensor, factor: float) -> Tensor:
    """See :func:`lightning_pfc.kernels.sums.pack_sums`."""
    sums, cosine = sums.contiguous(), cosine.contiguous()
    count, each = cosine.shape
    out = cosine.new_empty((each + 1, count), dtype=torch.float64)
    launch(
        vectors.pack_sums, (blocks(count, _BLOCK),), sums, cosine, out, factor, count, each, BLOCK=_BLOCK,
        num_warps=4,
    )  # fmt: skip
    return out


def unpack_sums(reduced: Tensor, positives: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`lightning_pfc.kernels.sums.unpack_sums`."""
    reduced, count = reduced.contiguous(), reduced.shape[1]
    wide = torch.empty_like(reduced[0])
    narrow, cosine = wide.new_empty((count,), dtype=dtype), wide.new_empty((count, positives), dtype=dtype)
    launch(
        vectors.unpack_sums, (blocks(count, _BLOCK),), reduced, wide, narrow, cosine, NO_NEGATIVES, count, positives,
        BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return wide, narrow, cosine


def begin_gradients(
    x: Tensor,
    x_sums: Tensor | None,
    logsumexp: Tensor,
    grad: Tensor,
    scale: float,
    reference: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`lightning_pfc.kernels.sums.begin_gradients`."""
    x, x_sums = side_by_side(x), None if x_sums is None else x_sums.contiguous()
    logsumexp, grad = logsumexp.contiguous(), grad.contiguous()
    count, width = x.shape
    factors, nothing, tile = x.new_empty((count,)), x.new_empty((0, width)), row_tile(width)
    weighted = nothing if dtype is None else x.new_empty((count, width), dtype=dtype)
    x_grad = x.new_empty((0, width)) if x_sums is None else torch.empty_like(x_sums)
    launch(
        vectors.begin_gradients, (blocks(count, tile.rows),), x, x if x_sums is None else x_sums, logsumexp,
        grad, factors, weighted, x_grad, scale, reference, NO_NEGATIVES / 2, count, width, x.stride(0),
        WEIGHTED=dtype is not None, HAS_SUMS=x_sums is not None, ROWS=tile.rows, WIDTH=tile.columns,
        num_warps=tile.warps,
    )  # fmt: skip
    return factors, weighted, x_grad


def margin_logits(
    cosine: Tensor, scale: float, cos_m: float, sin_m: float, offset: float, limit: float, exact: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`lightning_pfc.kernels.margins.margin_logits`."""
    cosine, count = cosine.contiguous(), cosine.numel()
    logits, slopes = torch.empty_like(cosine), torch.empty_like(cosine)
    launch(
        vectors.margin_logits, (blocks(count, _BLOCK),), cosine, logits, slopes, count, scale, cos_m, sin_m, offset,
        limit, EXACT=exact, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return logits, slopes
