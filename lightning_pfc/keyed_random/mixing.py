"""The two hash mixers of all keyed random numbers: bijections with good avalanche, not for cryptography.

Neither may change: initial centers, drawn classes, the order of the data and rounding all follow from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MASK_32 = 0xFFFFFFFF
GAMMA = 0x9E3779B97F4A7C15
"""The golden ratio in 64 bits: by which SplitMix64 steps."""

UInts = NDArray[np.uint64]
Words = TypeVar("Words", int, "Tensor")

# Odd 64-bit constants of SplitMix64 as signed numbers: torch multiplies int64 modulo 2^64.
SIGNED_GAMMA = GAMMA - (1 << 64)
_SIGNED_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_SIGNED_2 = 0x94D049BB133111EB - (1 << 64)


def mix_32(x: Words) -> Words:
    """A bijection of 32-bit words, held in an int or in int64 (constants of C. Wellons' hash prospector)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK_32
    return x ^ (x >> 16)


def splitmix_64(values: UInts) -> UInts:
    """SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014), elementwise."""
    z: UInts = values ^ (values >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def splitmix_64_tensor(x: Tensor) -> Tensor:
    """The same on int64 of any device."""
    x = (x ^ shift_right(x, 30)) * _SIGNED_1
    x = (x ^ shift_right(x, 27)) * _SIGNED_2
    return x ^ shift_right(x, 31)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
