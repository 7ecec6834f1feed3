"""The keyed permutation of :mod:`lightning_pfc.keyed_random.permutation` in 32 bits, for domains below 2^32."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.hashing import mix, word

ROUNDS = tl.constexpr(6)


@triton.jit
def added(value, number, modulus):
    """(value + number) mod modulus for value < modulus < 2^31, in uint32."""
    value += number % modulus
    return tl.where(value >= modulus, value - modulus, value)


@triton.jit
def permuted(x, seed_low, seed_high, step, a, b):
    """The permutation's images of ``x`` (int64 below a * b), int64; the keys are those of (seed, step)."""
    state = mix(word(step) ^ mix(word(seed_low)))
    state = mix(state ^ word(step >> 32) ^ mix(word(seed_high) ^ 0x5BF03635))
    x, a, b = x.to(tl.uint32), word(a), word(b)
    left, right = x // b, x % b
    for i in tl.static_range(ROUNDS):
        key = mix(state + word((i + 1) * 0x9E3779B9))
        if i % 2:
            right = added(right, mix(left ^ key), b)
        else:
            left = added(left, mix(right ^ key), a)
    return left.to(tl.int64) * b.to(tl.int64) + right.to(tl.int64)
