"""Random bits for rounding that are a function of (seed, step, row) and of nothing else."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lightning_pfc.keyed_random.mixing import MASK_32, mix_32

_TABLE_ROWS = 256


class RowNoise:
    """Sixteen random bits for every element of any row, in one step.

    A table of ``256 x width`` hashed numbers is made once per step. A row takes the line of the table, and adds the
    number modulo 2^16, that its own hash says. Every number is uniform by itself; rows are pairwise independent in
    every column, and so are the elements of a row but for the 256 lines that they can come from in one step. That is a
    few passes over memory instead of a generator's run per element, and the same numbers on every device and for any
    split of the rows over ranks.

    Args:
        seed: Any integer.
        step: Number of the step.
        width: Elements of a row.
        device: Where the numbers are wanted.
    """

    def __init__(self, seed: int, step: int, width: int, device: torch.device) -> None:
        key = seed & MASK_32
        for part in (seed >> 32, step, step >> 32):
            key = mix_32((mix_32(key) + (part & MASK_32)) & MASK_32)
        self._key, self._width, self._device = key, width, device

    @cached_property
    def _table(self) -> Tensor:
        counter = torch.arange(_TABLE_ROWS * self._width, device=self._device)
        return (mix_32(mix_32(counter) ^ self._key) & 0xFFFF).to(torch.int32).view(_TABLE_ROWS, self._width)

    def bits(self, rows: Tensor, stream: int) -> Tensor:
        """Numbers from 0 to 65535 for some rows, int32 ``(n, width)``.

        Args:
            rows: Global row numbers, ``(n,)`` int64.
            stream: Tells apart the tensors that belong to the rows.
        """
        place = mix_32(mix_32(rows) ^ mix_32((self._key + 0x9E3779B9 * (stream + 1)) & MASK_32))
        shift = (place >> 8) & 0xFFFF
        noise = self._table.index_select(0, place & (_TABLE_ROWS - 1))
        return noise.add_(shift.to(torch.int32)[:, None]).bitwise_and_(0xFFFF)
