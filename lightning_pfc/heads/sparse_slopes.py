"""The few slopes of a chunk that matter, once training has made most probabilities negligible.

Shapes: B rows of the gathered batch, n classes of a chunk, m of their B n slopes d loss / d cosine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_WORTH_IT = 0.04  # share of the slopes from which on the two matrix products are faster than sums over single entries


class Slopes(NamedTuple):
    """Slopes that are not left out.

    Attributes:
        rows: (m,) int64, ascending: of the batch.
        columns: (m,) int64, ascending within a row: of the chunk.
        values: (m,).
    """

    rows: Tensor
    columns: Tensor
    values: Tensor


def smallest_slope(tolerance: float, grad_target: Tensor, num_sampled: Tensor) -> Tensor:
    """() the size below which every slope may be left out, the same on every rank.

    The energy of the gradient, the sum of its squared slopes, is at least that of the targets. With each of the B K
    slopes that are left out below ``tolerance * sqrt(energy of the targets / (B K))``, they hold at most ``tolerance **
    2`` of it.

    Args:
        tolerance: root of the share of the energy that may be left out.
        grad_target: (B,) slopes of the targets.
        num_sampled: () int64, K, classes over all ranks.
    """
    count = num_sampled.to(grad_target.dtype) * grad_target.shape[0]
    return tolerance * (grad_target.square().sum() / count).sqrt()


def places(matters: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows and columns of what is True in (B, n) bool on a CPU; None where they are too many to be worth it."""
    flat = torch.from_numpy(np.flatnonzero(matters.numpy()))  # Tensor.nonzero takes four times as long
    if flat.numel() > _WORTH_IT * matters.numel():
        return None
    rows = torch.div(flat, matters.shape[1], rounding_mode="floor")
    return rows, flat.sub_(rows * matters.shape[1])


def times_centers(slopes: Slopes, centers: Tensor, batch: int) -> Tensor:
    """``S C`` (B, D) of the slopes S (B, n) and the centers C (n, D) of a chunk."""
    starts = torch.searchsorted(slopes.rows, torch.arange(batch))
    return F.embedding_bag(slopes.columns, centers, starts, mode="sum", per_sample_weights=slopes.values)


def by_class(slopes: Slopes) -> tuple[Slopes, Tensor]:
    """The same slopes in order of their columns, and where a column begins (u,), for the u columns that have any."""
    order = slopes.columns.argsort(stable=True)
    columns = slopes.columns[order]
    begins = torch.ones_like(columns, dtype=torch.bool)
    torch.ne(columns[1:], columns[:-1], out=begins[1:])
    starts = torch.from_numpy(np.flatnonzero(begins.numpy()))
    return Slopes(slopes.rows[order], columns, slopes.values[order]), starts


def times_batch(slopes: Slopes, starts: Tensor, x: Tensor) -> Tensor:
    """``S^T X`` (u, D) for the columns that have slopes, from :func:`by_class` and the batch X (B, D)."""
    return F.embedding_bag(slopes.rows, x, starts, mode="sum", per_sample_weights=slopes.values)


def sums_by_class(values: Tensor, starts: Tensor) -> Tensor:
    """Sums (u,) of ``values`` (m,), which are in order of their columns."""
    column = torch.zeros(values.shape[0], dtype=torch.int64)
    column[starts[1:]] = 1
    return values.new_zeros(starts.shape[0]).index_add_(0, column.cumsum_(0), values)
