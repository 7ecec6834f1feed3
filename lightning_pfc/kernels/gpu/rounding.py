"""Rounding to the nearest, which Triton's interpreter does for every type but bfloat16: that one it cuts off."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.library import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def nearest(values, TYPE: tl.constexpr):
    """Float32 ``values`` in another type, ties to even; on a device it is one conversion."""
    if INTERPRETED and tl.bfloat16 == TYPE:
        bits = values.to(tl.uint32, bitcast=True)
        up = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(values == values, up, (bits >> 16) | 0x40)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(TYPE)
