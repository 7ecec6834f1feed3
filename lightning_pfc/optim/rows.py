"""Row-sparse gradients: which parameters get them, and how an optimizer goes over them.

Shape letters: ``R`` rows of the parameter (the centers of this rank), ``K`` entries of the gradient, ``n`` rows of one
chunk; ``*rest`` the shape of one row (``(D,)`` for centers, ``()`` for biases).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.distributed.class_rows import GivenRows, class_rows
from lightning_pfc.distributed.class_rows import is_row_sparse as is_row_sparse

CHUNK_BYTES = {"cpu": 4 << 20}
"""Bytes of float32 rows handled at a time, by type of device: on a CPU little enough for a cache, and so much that its
threads do not wait for each other all the time, which costs most where other work has one of the cores."""

DEFAULT_CHUNK_BYTES = 64 << 20
"""The same for every other type of device, where few large kernels are best."""


def mark_row_sparse(param: Tensor, holder: object) -> None:
    """Tells the head that owns ``param`` to give it row-sparse gradients.

    Args:
        param: Parameter of a head; another is left alone.
        holder: The optimizer on whose behalf. When it is gone, and no other has marked ``param`` since, the gradients
            are dense again.
    """
    record = class_rows(param)
    if record is not None:
        record.be_sparse_for(param, holder)


def is_row_sharded(param: Tensor) -> bool:
    """Whether ``param`` belongs to a Partial FC head."""
    return class_rows(param) is not None


def first_row(param: Tensor) -> int:
    """Global number of the first row of ``param``: that of its head's first class, or 0."""
    record = class_rows(param)
    return 0 if record is None else record.shard.start


class RowGradient(NamedTuple):
    """A gradient by rows in which every row appears once.

    Attributes:
        rows: Row numbers, ``(K,)`` int64.
        values: Their gradients, ``(K, *rest)``.
        num_real: How many leading entries are real, a 0-d int64 tensor on the device of ``values``; the entries after
            them repeat the last real row number and hold zeros. None if all entries are real, which is always so on a
            CPU.
    """

    rows: Tensor
    values: Tensor
    num_real: Tensor | None


class RowChunk(NamedTuple):
    """Some rows of a gradient.

    Attributes:
        rows: Row numbers ``(n,)`` int64, or a slice of rows. A row number that appears twice comes with equal
            gradients.
        grad: ``(n, *rest)``. It may be a part of the gradient itself: it is not to be written.
        live: None, or a 0-d bool tensor on the device: False if the chunk is nothing but padding, whose rows stay as
            they are.
    """

    rows: Tensor | slice
    grad: Tensor
    live: Tensor | None = None


def unique_rows(grad: Tensor) -> RowGradient:
    """Adds up the entries of a row-sparse gradient that belong to the same row.

    A coalesced gradient (of ascending rows, each once) is taken as it is. Otherwise the entries are sorted and summed
    by segments: on a CPU into as many rows as there are, on other devices into tensors of a fixed size, with no host
    synchronisation, where ``num_real`` says how many rows there are. Entries whose row number is not below the number
    of rows are padding: they are dropped, whatever they hold.

    Args:
        grad: Sparse COO tensor with one sparse dimension, ``(R, *rest)``, ``K`` entries.

    Returns:
        The rows in ascending order, each once.

    Raises:
        ValueError: If ``grad`` is not sparse in its first dimension only.
    """
    _check_layout(grad)
    index, values = grad._indices()[0], grad._values()
    if is_summed(grad):
        return RowGradient(index, values, None)
    if grad.device.type != "cpu":
        return _sum_segments(index, values, grad.shape[0])
    for rows, total in _summed_chunks(grad, index.numel()):
        return RowGradient(rows, total, None)
    return RowGradient(index[:0], values[:0], None)


def is_as_given(grad: Tensor, given: GivenRows | None) -> bool:
    """Whether a row-sparse gradient still has the rows that its head gave it, so that nothing is left to add up.

    What several backward passes have added up, or somebody has made, has row numbers of its own.
    """
    if given is None or grad._nnz() != given.index.shape[0]:
        return False
    # an address would not do for tensors that have none
    return bool(grad._indices().untyped_storage()._cdata == given.index.untyped_storage()._cdata)


def whole_gradient(grad: Tensor, given: GivenRows | None) -> tuple[Tensor | slice, Tensor, Tensor | None]:
    """All rows of a gradient at once, for a kernel that steps them all.

    Args:
        grad: Dense ``(R, *rest)`` or row-sparse, as in :func:`row_chunks`.
        given: What the head said of it.

    Returns:
        Row numbers ``(K,)`` int64, each once but for padding, or a slice; their gradients ``(K, *rest)``; and how many
        leading entries are real, a 0-d int64 tensor, or None for all.

    Raises:
        ValueError: If ``grad`` is neither dense nor sparse in its first dimension only.
    """
    if grad.layout == torch.strided:
        return slice(0, grad.shape[0]), grad, None
    _check_layout(grad)
    if given is not None and is_as_given(grad, given):
        rows = slice(0, grad.shape[0]) if given.is_every else given.index
        return rows, grad._values(), given.num_real
    return unique_rows(grad)


def row_chunks(grad: Tensor, max_rows: int | None = None) -> Iterator[RowChunk]:
    """Goes over a gradient in chunks of rows, each row once, holding no more than a chunk of new memory on a CPU.

    Args:
        grad: Dense ``(R, *rest)``, in which case the chunks are slices of all rows, or sparse COO with one sparse
            dimension, coalesced or not (several backward passes added up), as in :func:`unique_rows`.
        max_rows: Rows per chunk; by default as many as fit in ``CHUNK_BYTES``.

    Yields:
        The chunks, in ascending order of rows.

    Raises:
        ValueError: If ``grad`` is neither dense nor sparse in its first dimension only.
    """
    size = rows_per_chunk(grad) if max_rows is None else max_rows
    values = grad
    if grad.layout != torch.strided:
        _check_layout(grad)
        values = grad._values()
        if grad.device.type == "cpu" and not is_summed(grad):
            for rows_of_chunk, total in _summed_chunks(grad, size):
                yield RowChunk(rows_of_chunk, total)
            return
    # as many different rows as there are: all of them, in order, so that they are read and written in place
    if grad.layout == torch.strided or (grad.device.type == "cpu" and values.shape[0] == grad.shape[0]):
        for start in range(0, grad.shape[0], size):
            rows = slice(start, min(start + size, grad.shape[0]))
            yield RowChunk(rows, values[rows])
        return
    index, values, count = unique_rows(grad)
    for start in range(0, index.numel(), size):
        stop = min(start + size, index.numel())
        if count is None:
            yield RowChunk(index[start:stop], values[start:stop])
            continue
        position, live = clamp_padding(start, stop, count)
        yield RowChunk(index.index_select(0, position), values.index_select(0, position), live)


def clamp_padding(start: int, stop: int, num_real: Tensor) -> tuple[Tensor, Tensor]:
    """Places of a chunk's entries, padding moved to the last real one, and whether the chunk holds a real one at all.

    The padding of the chunk in which the real entries end then does what the last of them does, and writes the same
    values; chunks after that would do it again, so they are to do nothing.

    Args:
        start: Place of the first entry.
        stop: Place after the last.
        num_real: 0-d int64 tensor, how many leading entries of all are real.

    Returns:
        Places ``(stop - start,)`` int64, and a 0-d bool tensor.
    """
    position = torch.arange(start, stop, device=num_real.device).minimum(num_real - 1).clamp_min_(0)
    return position, num_real > start


def rows_per_chunk(rows: Tensor) -> int:
    """How many rows of ``rows.shape[1:]`` elements make one chunk on its device, at least one."""
    budget = CHUNK_BYTES.get(rows.device.type, DEFAULT_CHUNK_BYTES)
    return max(1, budget // (4 * max(1, prod(rows.shape[1:]))))


def _check_layout(grad: Tensor) -> None:
    if grad.layout != torch.sparse_coo or grad.sparse_dim() != 1:
        raise ValueError(
            f"a gradient of layout {grad.layout} with shape {tuple(grad.shape)} is not row-sparse; give a dense "
            "tensor, or torch.sparse_coo_tensor with indices of shape (1, K)."
        )


def is_summed(grad: Tensor) -> bool:
    """Whether every row of a row-sparse gradient appears once, in ascending order, so that nothing is left to add up.

    Autograd forgets, when it puts a sparse gradient into ``.grad``, that it was coalesced. On a CPU one look at the row
    numbers tells, which costs next to nothing; on other devices it would wait for the host, so the flag decides there.
    """
    if grad._nnz() == 0:
        return True
    index = grad._indices()[0]
    if grad.device.type == "cpu":
        return bool((index[1:] > index[:-1]).all()) and int(index[-1]) < grad.shape[0]
    # torch calls one entry coalesced, without being told, even if it is padding
    return grad.is_coalesced() and grad._nnz() > 1


def _sum_segments(index: Tensor, values: Tensor, num_rows: int) -> RowGradient:
    """:func:`unique_rows` with shapes that depend on shapes only, for devices that must not wait for the host."""
    num_entries = index.numel()
    ordered, order = index.sort()
    real = ordered < num_rows  # padding sorts last
    first = real.clone()
    first[1:] &= ordered[1:] != ordered[:-1]
    count = first.sum()
    # The place of each entry's row among the distinct ones. Padding goes to a place of its own, which is cut off in the
    # end.
    place = (first.cumsum(0) - 1).where(real, num_entries)
    last = ordered.where(real, 0).amax()
    rows = last.expand(num_entries + 1).clone().index_copy_(0, place, ordered)
    total = torch.zeros((num_entries + 1, *values.shape[1:]), dtype=values.dtype, device=values.device)
    total.index_add_(0, torch.empty_like(place).index_copy_(0, order, place), values)
    return RowGradient(rows[:-1], total[:-1], count)


def _summed_chunks(grad: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and sums of an uncoalesced gradient on a CPU, ``size`` rows at a time: the sum is never held whole."""
    ordered, order = grad._indices()[0].sort(stable=True)  # stable: entries of a row are added in the order they came
    values = grad._values()
    entries = int(torch.searchsorted(ordered, grad.shape[0]))
    rows, count = torch.unique_consecutive(ordered[:entries], return_counts=True)
    stops = count.cumsum(0)
    place = torch.repeat_interleave(count)  # (entries,): which of ``rows`` an entry belongs to
    for start in range(0, rows.numel(), size):
        stop = min(start + size, rows.numel())
        begin, end = (0 if start == 0 else int(stops[start - 1])), int(stops[stop - 1])
        total = torch.zeros((stop - start, *values.shape[1:]), dtype=values.dtype)
        total.index_add_(0, place[begin:end] - start, values.index_select(0, order[begin:end]))
        yield rows[start:stop], total
