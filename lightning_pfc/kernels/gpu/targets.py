"""The targets' cosines and their gradients, in float32, a row at a time."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.rounding import nearest
from lightning_pfc.kernels.gpu.rows import inverse_length, local_rows, read_rows


@triton.jit
def target_cosines(
    x,
    weight,
    index,
    targets,
    out,
    num_entries,
    num_targets,
    width,
    x_stride,
    stride,
    eps,
    HAS_INDEX: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``out[i, p] = x[i] . w / |w|`` for the center ``w`` of target p of row i, 0 where there is none."""
    entries = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = entries < num_entries
    target = tl.load(targets + entries, mask=live, other=-1)
    owned = target >= 0
    values = read_rows(weight, local_rows(index, target, owned, HAS_INDEX), stride, columns, width, owned)
    own = read_rows(x, entries // num_targets, x_stride, columns, width, owned)
    cosine = tl.sum(own * values, 1)
    if NORMALIZE:
        cosine *= inverse_length(values, eps)
    tl.store(out + entries, cosine, mask=live)


@triton.jit
def embedding_gradients(
    weight,
    index,
    targets,
    grad,
    out,
    num_rows,
    num_targets,
    width,
    stride,
    out_stride,
    eps,
    HAS_INDEX: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``out[i] += sum_p grad[i, p] w / |w|`` over the targets of row i."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = rows < num_rows
    total = read_rows(out, rows, out_stride, columns, width, live)
    for p in range(num_targets):
        target = tl.load(targets + rows * num_targets + p, mask=live, other=-1)
        owned = target >= 0
        values = read_rows(weight, local_rows(index, target, owned, HAS_INDEX), stride, columns, width, owned)
        factor = tl.load(grad + rows * num_targets + p, mask=owned, other=0.0)
        if NORMALIZE:
            factor *= inverse_length(values, eps)
        total += factor[:, None] * values
    inside = live[:, None] & (columns < width)[None, :]
    tl.store(out + rows[:, None] * out_stride + columns[None, :], nearest(total, out.dtype.element_ty), mask=inside)


@triton.jit
def link_equal(targets, following, num_entries, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """For each entry the next one with the same target (``num_entries`` if none); -1 - that for the first of its kind.

    So who adds up the entries of a center is known, and in which order: no atomic addition, the same bits every time.
    """
    entries = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = entries < num_entries
    own = tl.load(targets + entries, mask=live, other=-1)
    later = tl.full((ROWS,), 0, tl.int32) + num_entries
    earlier = tl.zeros((ROWS,), tl.int32)
    for start in range(0, num_entries, COLUMNS):
        others = start + tl.arange(0, COLUMNS)
        other = tl.load(targets + others, mask=others < num_entries, other=-2)
        equal = own[:, None] == other[None, :]
        after = equal & (others[None, :] > entries[:, None])
        later = tl.minimum(later, tl.min(tl.where(after, others[None, :], num_entries), 1))
        before = equal & (others[None, :] < entries[:, None])
        earlier = tl.maximum(earlier, tl.max(before.to(tl.int32), 1))
    tl.store(following + entries, tl.where(earlier == 0, -1 - later, later), mask=live)


@triton.jit
def center_gradients(
    x,
    targets,
    grad,
    following,
    out,
    first,
    num_out,
    num_entries,
    num_targets,
    width,
    x_stride,
    out_stride,
    WIDTH: tl.constexpr,
):
    """``out[k - first] += sum of grad[i, p] x[i]`` over the entries whose target is k.

    The first entry of a center does it, if the center is one of the ``num_out``.
    """
    entry = tl.program_id(0)
    target = tl.load(targets + entry)
    code = tl.load(following + entry)
    columns = tl.arange(0, WIDTH)
    target = tl.where((target >= first) & (target < first + num_out), target - first, -1)
    inside = (columns < width) & (target >= 0) & (code < 0)
    place = out + tl.maximum(target, 0).to(tl.int64) * out_stride + columns
    total = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    current = tl.where((target >= 0) & (code < 0), entry, num_entries)
    while current < num_entries:
        row = (current // num_targets).to(tl.int64)
        values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(grad + current) * values
        code = tl.load(following + current)
        current = tl.where(code < 0, -1 - code, code)
    tl.store(place, nearest(total, out.dtype.element_ty), mask=inside)
