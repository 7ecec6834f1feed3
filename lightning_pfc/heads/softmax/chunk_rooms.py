"""Room for what a chunk of classes needs on the way, one after the other: paid for once a pass, not once a chunk.

A CPU's allocator may give what a chunk frees back to the system, and the next chunk pays a fault for every page of it
again: 33,000 a step at 100,000 classes, a tenth of the step in float32 and more in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.buffers.scratch import scratch


class ChunkRooms:
    """Buffers that the chunks of a pass share; what lies in one is gone when it is asked for again.

    Args:
        x: (B, D) embeddings, in the compute dtype.
        width: most classes of a chunk.
    """

    def __init__(self, x: Tensor, width: int) -> None:
        self._x, self._width = x, width
        self._rooms: dict[tuple[int, torch.dtype], Tensor] = {}

    def rows(self, count: int, dtype: torch.dtype | None = None) -> Tensor:
        """(count, D) for rows of a chunk, in the compute dtype or another one."""
        return self._room(self._x.shape[1], count, dtype).view(count, -1)

    def scores(self, count: int) -> Tensor:
        """(B, count) for scores of a chunk, in the compute dtype."""
        return self._room(self._x.shape[0], count, None).view(-1, count)

    def _room(self, each: int, count: int, dtype: torch.dtype | None) -> Tensor:
        key = each, dtype or self._x.dtype
        if key not in self._rooms:
            self._rooms[key] = scratch((each * self._width,), self._x, dtype)
        return self._rooms[key][: each * count]
