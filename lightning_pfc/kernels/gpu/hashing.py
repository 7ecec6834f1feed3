"""Random bits in kernels: those of :mod:`lightning_pfc.keyed_random.rounding_noise`, bit for bit, in 32 bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """The bijection of 32-bit numbers that permutation and noise are made of; ``x`` is uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def word(number):
    """The low 32 bits of an integer, or of a constant, as uint32."""
    return (number + tl.zeros((), tl.int64)).to(tl.uint32)


@triton.jit
def noise_key(seed_low, seed_high, step):
    """The key of :class:`RowNoise` for a step; ``step`` is an int64 scalar, the halves of the seed are integers."""
    key = mix(word(seed_low)) + word(seed_high)
    key = mix(mix(key)) + word(step)
    key = mix(mix(key)) + word(step >> 32)
    return mix(key)


@triton.jit
def noise_bits(key, rows, columns, width, STREAM: tl.constexpr):
    """:meth:`RowNoise.bits` for rows (R,) and columns (W,): uint32 (R, W) from 0 to 65535."""
    place = mix(mix(rows.to(tl.uint32)) ^ mix(key + word(0x9E3779B9 * (STREAM + 1))))
    counter = (place & 255)[:, None] * word(width) + columns.to(tl.uint32)[None, :]
    return (mix(mix(counter) ^ key) + ((place >> 8) & 0xFFFF)[:, None]) & 0xFFFF
