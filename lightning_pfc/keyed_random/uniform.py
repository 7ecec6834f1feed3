"""Random numbers as a function of (seed, step, index): the same on every rank, device and number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.keyed_random.mixing import SIGNED_GAMMA, shift_right, splitmix_64_tensor


def keyed_uniform(seed: int, step: Tensor, index: Tensor, stream: int = 0) -> Tensor:
    """Numbers in (0, 1), float64, of the shape of ``index``; nothing waits for the device.

    Args:
        seed: any integer; taken modulo 2^63.
        step: () int64.
        index: int64, any shape.
        stream: tells independent draws of the same row apart.
    """
    key = splitmix_64_tensor(step.to(index.device) * SIGNED_GAMMA + ((seed * 4 + stream) & 0x7FFFFFFFFFFFFFFF))
    bits = shift_right(splitmix_64_tensor(key + index * SIGNED_GAMMA + 1), 11)
    return (bits.to(torch.float64) + 0.5) * 2.0**-53


def keyed_normal(seed: int, step: Tensor, index: Tensor) -> Tensor:
    """Standard normal numbers, float64, of the shape of ``index`` (Box-Muller)."""
    radius = (-2.0 * keyed_uniform(seed, step, index, 0).log()).sqrt()
    return radius * torch.cos(2.0 * torch.pi * keyed_uniform(seed, step, index, 1))
