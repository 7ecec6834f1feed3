"""Kernels that are not to be used: one spills, one does not compile. In a file, since Triton reads their source."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spills(source, out, SIZE: tl.constexpr):
    """A product whose sums do not fit in the registers of one warp."""
    place = tl.arange(0, SIZE)
    a = tl.load(source + place[:, None] * SIZE + place[None, :])
    b = tl.load(source + place[None, :] * SIZE + place[:, None])
    tl.store(out + place[:, None] * SIZE + place[None, :], tl.dot(a, b))


@triton.jit
def breaks(source, out, SIZE: tl.constexpr):
    """Adds tiles of shapes that do not fit."""
    tl.store(out + tl.arange(0, SIZE), tl.load(source + tl.arange(0, SIZE)) + tl.arange(0, 2 * SIZE + 1))
