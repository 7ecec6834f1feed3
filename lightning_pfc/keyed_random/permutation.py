"""A keyed pseudo-random permutation, evaluated point by point: drawing without replacement costs what is drawn.

A generalised Feistel network over Z_a x Z_b (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002),
all in vectorised integer arithmetic on any device, with no data-dependent shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.keyed_random.mixing import MASK_32, mix_32

_ROUNDS = 6


@dataclass(frozen=True)
class Permutation:
    """A permutation of ``range(domain)``, where ``domain`` is the least product a*b >= n with a, b near sqrt(n).

    Fewer than ``sqrt(n) + 1`` points of the domain lie outside ``range(n)``; the caller skips those.

    Args:
        n: how many points matter.
        key: (rounds,) int64 tensor of round keys, see :func:`round_keys`.
    """

    n: int
    key: Tensor

    @property
    def sides(self) -> tuple[int, int]:
        """(a, b) of the domain."""
        a = max(2, math.isqrt(self.n - 1) + 1)
        return a, max(2, -(-self.n // a))

    @property
    def domain(self) -> int:
        """The size ``a * b >= n`` of the domain."""
        a, b = self.sides
        return a * b

    def __call__(self, x: Tensor) -> Tensor:
        """The images of ``x``, int64 in [0, domain), any shape."""
        a, b = self.sides
        left, right = torch.div(x, b, rounding_mode="floor"), x % b
        for i in range(_ROUNDS):
            if i % 2:
                right = (right + _hash(left, self.key[i])) % b
            else:
                left = (left + _hash(right, self.key[i])) % a
        return left * b + right

    def inverse(self, y: Tensor) -> Tensor:
        """The points that map to ``y``, int64 in [0, domain), any shape."""
        a, b = self.sides
        left, right = torch.div(y, b, rounding_mode="floor"), y % b
        for i in reversed(range(_ROUNDS)):
            if i % 2:
                right = (right - _hash(left, self.key[i])) % b
            else:
                left = (left - _hash(right, self.key[i])) % a
        return left * b + right


def round_keys(seed: int, step: Tensor) -> Tensor:
    """Keys of the rounds from (seed, step); ``step`` is a 0-d int64 tensor and stays on its device."""
    low, high = seed & MASK_32, (seed >> 32) & MASK_32
    state = mix_32((step & MASK_32) ^ mix_32(low))
    state = mix_32(state ^ (step >> 32) ^ mix_32(high ^ 0x5BF03635))
    rounds = torch.arange(1, _ROUNDS + 1, dtype=torch.int64, device=step.device)
    return mix_32((state + rounds * 0x9E3779B9) & MASK_32)


def _hash(x: Tensor, key: Tensor) -> Tensor:
    """32 random-looking bits of (x, key)."""
    return mix_32(x ^ key)
