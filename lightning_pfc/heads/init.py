"""Initial centers that depend on (seed, global class id) alone: the same head on any number of ranks and any device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_BLOCK = 1024  # classes per random stream; a part of the definition of the initial centers, so never changed


def init_centers_(out: Tensor, start: int, seed: int, std: float) -> Tensor:
    """Fill ``out`` with N(0, std^2), row i being the center of global class ``start + i``.

    Every block of 1024 classes has its own CPU stream, keyed by (seed, block), so a shard is drawn without the others
    and a GPU gets the numbers of a CPU. Drawn in threads; at most a few blocks are held beside ``out``.

    Args:
        out: (c, D), any floating dtype and device; overwritten.
        start: global class id of the first row.
        seed: of the head.
        std: standard deviation.
    """
    num_rows, dim = out.shape
    blocks = range(start // _BLOCK, -(-(start + num_rows) // _BLOCK))

    def fill(block: int) -> None:
        generator = torch.Generator("cpu").manual_seed(_stream(seed, block))
        rows = torch.empty((_BLOCK, dim), dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
        low, high = max(block * _BLOCK, start), min((block + 1) * _BLOCK, start + num_rows)
        with torch.no_grad():  # grad mode is per thread
            out[low - start : high - start].copy_(rows[low - block * _BLOCK : high - block * _BLOCK])

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(fill, blocks))
    return out


def _stream(seed: int, block: int) -> int:
    """A 63-bit seed for the stream of a block (splitmix64 finaliser)."""
    z = (seed * 0x9E3779B97F4A7C15 + (block + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & 0x7FFFFFFFFFFFFFFF
