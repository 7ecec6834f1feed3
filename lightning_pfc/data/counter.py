"""Randomness by number: a value is a hash of what it is for, never of what was drawn before it.

So a picture is augmented the same way whatever batch, worker, rank or process count it comes to, a run can be taken up
at any step, and a permutation of a billion images needs no memory. The mixing function is SplitMix64's finaliser
(Steele, Lea, Flood, OOPSLA 2014); it is not for cryptography.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_pfc.keyed_random.mixing import GAMMA, splitmix_64

UInts = NDArray[np.uint64]

_MASK = 0xFFFFFFFFFFFFFFFF


def _mix_int(value: int) -> int:
    return int(splitmix_64(np.asarray([value & _MASK], dtype=np.uint64))[0])


def stream(*words: int | NDArray[np.int64] | UInts) -> UInts:
    """Keys of independent streams, one per tuple of words.

    Args:
        words: integers or integer arrays, broadcast against each other; negative ones count modulo 2^64. The order
            matters: ``stream(1, 2) != stream(2, 1)``.

    Returns:
        uint64 keys, at least 1-d.
    """
    state: UInts = np.zeros(1, dtype=np.uint64)
    for place, word in enumerate(words):
        if isinstance(word, (int, np.integer)):
            number: UInts = np.asarray([int(word) & _MASK], dtype=np.uint64)
        else:
            number = np.atleast_1d(word).astype(np.uint64)
        salt = np.uint64((GAMMA * (place + 1)) & _MASK)
        state = splitmix_64((state ^ number) + salt)
    return state


def bits(keys: UInts, count: int) -> UInts:
    """(n,) keys to (n, count) random 64-bit words: words 1..count of each stream."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA)
    return splitmix_64(keys[:, None] + steps)


def uniform(keys: UInts, count: int) -> NDArray[np.float32]:
    """(n,) keys to (n, count) float32 in [0, 1), 24 bits each."""
    numbers: NDArray[np.float32] = (bits(keys, count) >> np.uint64(40)).astype(np.float32)
    numbers *= np.float32(2.0**-24)
    return numbers


def normal(keys: UInts, count: int) -> NDArray[np.float32]:
    """(n,) keys to (n, count) standard normal float32 (Box-Muller)."""
    half = (count + 1) // 2
    words = bits(keys, half)
    u = ((words >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    v = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    radius = np.sqrt(-2.0 * np.log(u))
    both = np.concatenate([radius * np.cos(v), radius * np.sin(v)], axis=1)
    return both[:, :count].astype(np.float32)


def noise(keys: UInts, count: int) -> NDArray[np.float32]:
    """(n,) keys to (n, count) cheap noise of mean 0 and variance 1: differences of two uniforms, within +-2.45."""
    words = bits(keys, (count + 1) // 2).view(np.uint16)
    first, second = words[:, :count].astype(np.float32), words[:, -count:].astype(np.float32)
    return np.asarray((first - second) * np.float32(6**0.5 / 65536.0), dtype=np.float32)


class Permutation:
    """A random permutation of ``range(size)`` that is computed, not stored: a Feistel network with cycle walking.

    Args:
        size: number of elements.
        key: seed of the permutation; any integer.
    """

    _ROUNDS = 6

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"size={size}: a permutation needs at least one element.")
        self.size = size
        half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half = np.uint64(half)
        self._low = np.uint64((1 << half) - 1)
        self._keys = [np.uint64(_mix_int(key + (r + 1) * GAMMA)) for r in range(self._ROUNDS)]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) positions in [0, size) to the (n,) elements there."""
        values = positions.astype(np.uint64)
        if len(values) and (positions.min() < 0 or positions.max() >= self.size):
            raise ValueError(f"positions must lie in [0, {self.size}).")
        values = self._once(values)
        # The network permutes a power of four; elements beyond the size walk on until they are inside.
        while (outside := np.flatnonzero(values >= self.size)).size:
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: UInts) -> UInts:
        left, right = values >> self._half, values & self._low
        for key in self._keys:
            left, right = right, left ^ (splitmix_64(right + key) & self._low)
        joined: UInts = (left << self._half) | right
        return joined
