"""How rows are kept, inside kernels: the twins of :mod:`lightning_pfc.optim.row_formats`, with its random rounding."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.hashing import noise_bits

SMALLEST = tl.constexpr(1.0e-36)  # 255 over it is still a float32


@triton.jit
def read_state(source, scales, rows, places, inside, live, LEVELS: tl.constexpr):
    """Rows of a state in float32. ``LEVELS`` says how they are kept: 0 floats, 127 signed bytes, 255 roots in bytes."""
    values = tl.load(source + places, mask=inside, other=0.0).to(tl.float32)
    if LEVELS > 0:
        values *= tl.div_rn(tl.load(scales + rows, mask=live, other=0.0), LEVELS * 1.0)[:, None]
    if LEVELS == 255:
        values *= values
    return values


@triton.jit
def write_floats(target, places, values, inside, key, rows, columns, width, STREAM: tl.constexpr):
    """Floats as they are, or in bfloat16, up or down at random so that the expectation is exact."""
    if target.dtype.element_ty == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True) + noise_bits(key, rows, columns, width, STREAM)
        tl.store(target + places, (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
    else:
        tl.store(target + places, values, mask=inside)


@triton.jit
def write_state(
    target,
    scales,
    rows,
    places,
    values,
    inside,
    live,
    key,
    classes,
    columns,
    width,
    STREAM: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Rows of a state, kept as ``LEVELS`` says; bytes are multiples of the row's largest magnitude over LEVELS."""
    if LEVELS == 0:
        write_floats(target, places, values, inside, key, classes, columns, width, STREAM)
    else:
        if LEVELS == 255:
            values = tl.sqrt_rn(values)
        largest = tl.max(tl.abs(values), 1)
        # a row of zeros has scale 0
        factor = tl.div_rn(LEVELS * 1.0, tl.maximum(largest, SMALLEST))
        codes = values * factor[:, None]
        noise = noise_bits(key, classes, columns, width, STREAM).to(tl.float32)
        codes = tl.floor(codes + noise * (1.0 / 65536))
        lowest = 1.0 if LEVELS == 255 else -127.0
        codes = tl.minimum(tl.maximum(codes, lowest), LEVELS * 1.0)
        tl.store(target + places, codes.to(target.dtype.element_ty), mask=inside)
        tl.store(scales + rows, largest, mask=live)
