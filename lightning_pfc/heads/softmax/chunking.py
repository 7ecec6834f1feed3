"""How many classes a chunk has, and how many chunks are kept: by the device and the budget, never by what is free.

Shapes: B rows of the gathered batch, K sampled rows of this rank's centers, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

MEMORY_PROFILES = ("lean", "fast")
"""Words for a memory budget: keep nothing from forward to backward, or everything."""

_CPU_BUDGET = 512 << 20
_SHARE_OF_BUDGET = 4  # a quarter of it for the chunk that is worked on, where not all can be kept
_SHARE_OF_DEVICE = 16  # a sixteenth of what the device has altogether
# Centers and scores of a chunk, together. Half of it stays in more caches, but in each of its operations all threads
# wait for the slowest: beside other work on one of two cores a step took a fifth longer with half of it.
_CPU_CHUNK_BYTES = 32 << 20
_NARROWEST = 256
_TILE = 64  # classes of the tile that one multiprocessor works on


def budget_bytes(memory_budget: int | str | None, device: torch.device) -> int:
    """Bytes that may be kept from forward to backward.

    Args:
        memory_budget: bytes, ``"lean"`` (nothing), ``"fast"`` (everything), or None for the device's default: 512 MiB
            on a CPU, a sixteenth of its memory on a GPU, whether it is free or not.
        device: where the head computes.

    Raises:
        ValueError: for another word, or a negative number.
    """
    if memory_budget is None:
        return _CPU_BUDGET if device.type != "cuda" else _device_memory(device) // _SHARE_OF_DEVICE
    if memory_budget == "lean":
        return 0
    if memory_budget == "fast":
        return 1 << 62
    if isinstance(memory_budget, str) or memory_budget < 0:
        raise ValueError(
            f"memory_budget={memory_budget!r} must be a number of bytes, 0 keeps nothing, or a word: "
            f"{', '.join(MEMORY_PROFILES)}."
        )
    return memory_budget


def chunk_width(batch: int, num_rows: int, dim: int, device: torch.device, *, kept_bytes: int, budget: int) -> int:
    """Default number of classes per chunk, for a pass that keeps exponentials.

    On a GPU a chunk is as wide as the budget allows: with all exponentials kept, what they leave; else a quarter of it.
    So a step starts few kernels; with a small budget a chunk has a tile for each multiprocessor, whose scores stay in
    the L2 cache.

    Args:
        batch: B.
        num_rows: K.
        dim: D.
        device: where the head computes.
        kept_bytes: of one exponential.
        budget: bytes that may be kept.
    """
    if device.type == "cpu":
        return _device_width(batch, dim, device)
    room = max(budget - num_rows * batch * kept_bytes, budget // _SHARE_OF_BUDGET)
    most = max(_device_width(batch, dim, device), room // _working_bytes(batch, dim, kept_bytes))
    loops = max(1, -(-num_rows // most))
    return max(1, -(-num_rows // loops))  # all chunks alike


def _working_bytes(batch: int, dim: int, kept_bytes: int) -> int:
    """What a chunk needs for each of its classes while it is worked on: scores, exponentials, unit rows, gradient."""
    return batch * (4 + kept_bytes) + dim * 8


def bytes_to_keep(width: int, batch: int, dim: int, device: torch.device, *, kept_bytes: int, budget: int) -> int:
    """What of a budget is left for exponentials that are kept; on a GPU the rest is for a chunk that is worked on."""
    if device.type == "cpu":
        return budget
    return max(0, budget - width * _working_bytes(batch, dim, kept_bytes))


def num_kept(ranges: Sequence[tuple[int, int]], row_bytes: int, budget: int) -> int:
    """How many of the first chunks have their exponentials kept, at ``row_bytes`` per class."""
    return sum(high * row_bytes <= budget for _, high in ranges)


def _device_width(batch: int, dim: int, device: torch.device) -> int:
    if device.type != "cpu":
        return _TILE * _multiprocessors(device)
    return max(_NARROWEST, _CPU_CHUNK_BYTES // (4 * (dim + batch)) // _NARROWEST * _NARROWEST)


def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; of one that is only pretended, as many as an H200 has."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _device_memory(device: torch.device) -> int:
    if not torch.cuda.is_available():
        return 8 << 30
    return int(torch.cuda.get_device_properties(device).total_memory)
