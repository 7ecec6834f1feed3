"""Random numbers as a function of (seed, step, index): the same on every rank, device and number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor

# Odd 64-bit constants of splitmix64, as signed numbers: torch multiplies int64 modulo 2^64.
_GOLDEN = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def keyed_uniform(seed: int, step: Tensor, index: Tensor, stream: int = 0) -> Tensor:
    """Numbers in (0, 1), float64, of the shape of ``index``; nothing waits for the device.

    Args:
        seed: any integer; taken modulo 2^63.
        step: () int64.
        index: int64, any shape.
        stream: tells independent draws of the same row apart.
    """
    key = _mix(step.to(index.device) * _GOLDEN + ((seed * 4 + stream) & 0x7FFFFFFFFFFFFFFF))
    bits = _shift(_mix(key + index * _GOLDEN + 1), 11)
    return (bits.to(torch.float64) + 0.5) * 2.0**-53


def keyed_normal(seed: int, step: Tensor, index: Tensor) -> Tensor:
    """Standard normal numbers, float64, of the shape of ``index`` (Box-Muller)."""
    radius = (-2.0 * keyed_uniform(seed, step, index, 0).log()).sqrt()
    return radius * torch.cos(2.0 * torch.pi * keyed_uniform(seed, step, index, 1))
