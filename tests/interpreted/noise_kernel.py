"""A kernel that writes nothing but the random bits of rows; in a file, since Triton reads a kernel's source."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.hashing import noise_bits, noise_key


@triton.jit
def write_bits(rows, out, step, low, high, width, STREAM: tl.constexpr, WIDTH: tl.constexpr):
    """``out[i] = noise bits of rows[i]``, two rows a program."""
    places = tl.program_id(0) * 2 + tl.arange(0, 2)
    columns = tl.arange(0, WIDTH)
    found = noise_bits(noise_key(low, high, tl.load(step)), tl.load(rows + places), columns, width, STREAM)
    tl.store(out + places[:, None] * width + columns[None, :], found.to(tl.int32), mask=(columns < width)[None, :])
