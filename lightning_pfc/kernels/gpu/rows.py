"""Class centers as the products want them: gathered, of unit length, rounded. Each row is read once."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.rounding import nearest


@triton.jit
def read_rows(source, rows, stride, columns, width, live):
    """Rows (R, W) of a matrix in float32; zero where a row is not ``live`` and beyond its width. 64-bit offsets."""
    inside = live[:, None] & (columns < width)[None, :]
    places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(source + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def local_rows(index, places, live, HAS_INDEX: tl.constexpr):
    """The rows of the matrix that sampled places (R,) stand for, int64."""
    rows = places.to(tl.int64)
    if HAS_INDEX:
        rows = tl.load(index + rows, mask=live, other=0)
    return rows


@triton.jit
def inverse_length(values, eps):
    """1 / max(length, eps) of each row of (R, W)."""
    return tl.div_rn(1.0, tl.maximum(tl.sqrt_rn(tl.sum(values * values, 1)), eps))


@triton.jit
def projected(values, weight, eps):
    """The gradient of centers (R, W) from that of their unit rows: (g - u (u.g)) / |w|."""
    inverse = inverse_length(weight, eps)
    along = tl.sum(values * weight, 1) * inverse
    # a row shorter than eps is scaled by a constant, so nothing is projected out of its gradient
    along = tl.where(inverse < tl.div_rn(1.0, eps), along, 0.0)
    return (values - weight * (along * inverse)[:, None]) * inverse[:, None]


@triton.jit
def project_rows(
    grad,
    weight,
    index,
    num_rows,
    width,
    stride,
    eps,
    HAS_INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``grad[i]`` of the unit row of ``weight[index[i]]`` becomes that of the row itself."""
    places = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = places < num_rows
    inside = live[:, None] & (columns < width)[None, :]
    center = read_rows(weight, local_rows(index, places, live, HAS_INDEX), stride, columns, width, live)
    target = grad + places[:, None] * width + columns[None, :]
    tl.store(target, projected(tl.load(target, mask=inside, other=0.0), center, eps), mask=inside)


@triton.jit
def unit_rows(
    weight,
    index,
    out,
    inverse,
    num_rows,
    width,
    stride,
    eps,
    HAS_INDEX: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``out[i] = round(w / |w|)`` and ``inverse[i] = 1 / |w|`` for ``w = weight[index[i]]``."""
    places = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = places < num_rows
    values = read_rows(weight, local_rows(index, places, live, HAS_INDEX), stride, columns, width, live)
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if NORMALIZE:
        scale = inverse_length(values, eps)
    inside = live[:, None] & (columns < width)[None, :]
    target = out + places[:, None] * width + columns[None, :]
    tl.store(target, nearest(values * scale[:, None], out.dtype.element_ty), mask=inside)
    tl.store(inverse + places, scale, mask=live)
