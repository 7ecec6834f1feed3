"""The few entries of a chunk's gradient that matter, once training has made most probabilities negligible.

m entries of a matrix (B, n) of d loss / d cosine. On a CPU only: sizes depend on values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_WORTH_IT = 0.04  # share of the entries from which on the two matrix products are faster than sums over single ones


class SparseEntries(NamedTuple):
    """Entries of a matrix that are not left out.

    Attributes:
        rows: (m,) int64, ascending: of the batch.
        columns: (m,) int64, ascending within a row: of the chunk.
        values: (m,).
    """

    rows: Tensor
    columns: Tensor
    values: Tensor


def find_entries(matters: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows and columns of what is True in (B, n) bool on a CPU; None where they are too many to be worth it."""
    flat = torch.from_numpy(np.flatnonzero(matters.numpy()))  # Tensor.nonzero takes four times as long
    if flat.numel() > _WORTH_IT * matters.numel():
        return None
    rows = torch.div(flat, matters.shape[1], rounding_mode="floor")
    return rows, flat.sub_(rows * matters.shape[1])


def times_centers(entries: SparseEntries, centers: Tensor, batch: int) -> Tensor:
    """``S C`` (B, D) of the entries S (B, n) and the centers C (n, D) of a chunk."""
    starts = torch.searchsorted(entries.rows, torch.arange(batch))
    return F.embedding_bag(entries.columns, centers, starts, mode="sum", per_sample_weights=entries.values)


def by_class(entries: SparseEntries) -> tuple[SparseEntries, Tensor]:
    """The same entries in order of their columns, and where a column begins (u,), for the u columns that have any."""
    order = entries.columns.argsort(stable=True)
    columns = entries.columns[order]
    begins = torch.ones_like(columns, dtype=torch.bool)
    torch.ne(columns[1:], columns[:-1], out=begins[1:])
    starts = torch.from_numpy(np.flatnonzero(begins.numpy()))
    return SparseEntries(entries.rows[order], columns, entries.values[order]), starts


def times_batch(entries: SparseEntries, starts: Tensor, x: Tensor) -> Tensor:
    """``S^T X`` (u, D) for the columns that have entries, from :func:`by_class` and the batch X (B, D)."""
    return F.embedding_bag(entries.rows, x, starts, mode="sum", per_sample_weights=entries.values)


def sums_by_class(values: Tensor, starts: Tensor) -> Tensor:
    """Sums (u,) of ``values`` (m,), which are in order of their columns."""
    column = torch.zeros(values.shape[0], dtype=torch.int64)
    column[starts[1:]] = 1
    return values.new_zeros(starts.shape[0]).index_add_(0, column.cumsum_(0), values)
