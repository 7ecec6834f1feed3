"""What is done to the rows of a batch and to vectors of B numbers: one kernel for each chain of small operations."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.rounding import nearest
from lightning_pfc.kernels.gpu.rows import read_rows

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def unit_embeddings(x, unit, norms, num_rows, width, stride, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """``unit = x / max(|x|, eps)`` and ``norms = |x|``."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = rows < num_rows
    values = read_rows(x, rows, stride, columns, width, live)
    length = tl.sqrt_rn(tl.sum(values * values, 1))
    values = tl.div_rn(values, tl.maximum(length, eps)[:, None] + tl.zeros_like(values))
    inside = live[:, None] & (columns < width)[None, :]
    tl.store(unit + rows[:, None] * width + columns[None, :], values, mask=inside)
    tl.store(norms + rows, length, mask=live)


@triton.jit
def unit_embeddings_backward(
    unit,
    norms,
    grad,
    norm_grad,
    out,
    num_rows,
    width,
    eps,
    HAS_NORM_GRAD: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``out = (g - u (u.g)) / |x| + h u`` with g of the unit rows u and h of the lengths."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = rows < num_rows
    values = read_rows(unit, rows, width, columns, width, live)
    given = read_rows(grad, rows, width, columns, width, live)
    norm = tl.load(norms + rows, mask=live, other=1.0)
    length = tl.maximum(norm, eps)
    along = tl.where(norm >= eps, tl.sum(values * given, 1), 0.0)  # a constant divides a shorter row
    factor = tl.div_rn(-along, length)
    if HAS_NORM_GRAD:
        back = tl.load(norm_grad + rows, mask=live, other=0.0)
        factor += tl.where(norm > 0, back * tl.div_rn(length, tl.where(norm > 0, norm, 1.0)), 0.0)
    found = given * tl.div_rn(1.0, length)[:, None] + values * factor[:, None]
    inside = live[:, None] & (columns < width)[None, :]
    tl.store(out + rows[:, None] * width + columns[None, :], nearest(found, out.dtype.element_ty), mask=inside)


@triton.jit
def bad_rows(x, labels, out, num_rows, num_labels, num_classes, width, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """``out[i] = (a label of row i is no class, a number of row i is not finite)``."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = rows < num_rows
    values = read_rows(x, rows, stride, columns, width, live)
    infinite = tl.sum(tl.where(tl.abs(values) <= LARGEST, 0, 1), 1) > 0  # a NaN compares as false
    wrong = rows < 0
    for p in range(num_labels):
        label = tl.load(labels + rows * num_labels + p, mask=live, other=0)
        wrong = wrong | (label < 0) | (label >= num_classes)
    tl.store(out + rows * 2, wrong, mask=live)
    tl.store(out + rows * 2 + 1, infinite, mask=live)


@triton.jit
def own_columns(labels, out, count, start, stop, BLOCK: tl.constexpr):
    """``out = labels - start`` where that is a class of [start, stop), -1 elsewhere."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = places < count
    found = tl.load(labels + places, mask=live, other=-1)
    tl.store(out + places, tl.where((found >= start) & (found < stop), found - start, -1), mask=live)


@triton.jit
def pack_sums(sums, cosine, out, factor, num_rows, num_targets, BLOCK: tl.constexpr):
    """``out[0] = factor * sums``, ``out[1 + p] = cosine[:, p]`` in float64."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < num_rows
    total = tl.load(sums + rows, mask=live, other=0.0).to(tl.float64)
    tl.store(out + rows, total * factor, mask=live)
    for p in range(num_targets):
        found = tl.load(cosine + rows * num_targets + p, mask=live, other=0.0)
        tl.store(out + (p + 1) * num_rows + rows, found.to(tl.float64), mask=live)


@triton.jit
def unpack_sums(reduced, wide, narrow, cosine, lowest, num_rows, num_targets, BLOCK: tl.constexpr):
    """``wide = narrow = max(log(reduced[0]), lowest)``, ``cosine[:, p] = reduced[1 + p]``."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < num_rows
    total = tl.load(reduced + rows, mask=live, other=1.0)
    logarithm = tl.where(total == 0, lowest, tl.log(tl.where(total == 0, 1.0, total)))  # of a NaN, a NaN
    tl.store(wide + rows, logarithm, mask=live)
    tl.store(narrow + rows, logarithm.to(narrow.dtype.element_ty), mask=live)
    for p in range(num_targets):
        found = tl.load(reduced + (p + 1) * num_rows + rows, mask=live, other=0.0)
        tl.store(cosine + rows * num_targets + p, found.to(cosine.dtype.element_ty), mask=live)


@triton.jit
def begin_gradients(
    x,
    x_sums,
    logsumexp,
    grad,
    factors,
    weighted,
    x_grad,
    scale,
    reference,
    lowest,
    num_rows,
    width,
    x_stride,
    WEIGHTED: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``c = scale * grad * exp(reference - logsumexp)``, ``weighted = c x``, ``x_grad = c x_sums``."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = rows < num_rows
    logarithm = tl.load(logsumexp + rows, mask=live, other=lowest)
    back = tl.load(grad + rows, mask=live, other=0.0).to(tl.float64)
    there = (logarithm > lowest) | (logarithm != logarithm)
    share = tl.exp(tl.where(there, reference - logarithm, 0.0))
    factor = tl.where(there, share * back * scale, 0.0).to(tl.float32)
    tl.store(factors + rows, factor, mask=live)
    inside = live[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    if WEIGHTED:
        values = read_rows(x, rows, x_stride, columns, width, live) * factor[:, None]
        tl.store(weighted + places, nearest(values, weighted.dtype.element_ty), mask=inside)
    if HAS_SUMS:
        tl.store(x_grad + places, read_rows(x_sums, rows, width, columns, width, live) * factor[:, None], mask=inside)


@triton.jit
def margin_logits(
    cosine, logits, slopes, count, scale, cos_m, sin_m, offset, limit, EXACT: tl.constexpr, BLOCK: tl.constexpr
):
    """``logits = scale (cos(t + m) - offset)`` and its derivative by cos t; both in closed form."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = places < count
    given = tl.load(cosine + places, mask=live, other=0.0)
    inside = tl.where(given > limit, limit, tl.where(given < -limit, -limit, given))  # a NaN stays one
    sine = tl.sqrt_rn((1.0 - inside) * (1.0 + inside))
    tl.store(logits + places, scale * (inside * cos_m - sine * sin_m - offset), mask=live)
    slope = tl.zeros_like(given) + scale
    if EXACT:
        slope = tl.where(given == inside, scale * (cos_m + tl.div_rn(inside * sin_m, sine)), 0.0)
    tl.store(slopes + places, slope, mask=live)
