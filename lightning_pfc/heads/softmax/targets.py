"""Where the positives of a batch stand in a matrix of scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ChunkTargets(NamedTuple):
    """The positives of B rows within a chunk of n classes; every method is right where two are the same class.

    Attributes:
        columns: (B, P) int64, columns within the chunk; any column where ``here`` is False.
        here: (B, P) bool, whether the positive is one of the chunk's classes.
    """

    columns: Tensor
    here: Tensor

    @classmethod
    def within(cls, targets: Tensor, low: int, high: int) -> ChunkTargets:
        """Of ``targets`` (B, P), columns among all K with -1 for none, those in ``[low, high)``."""
        return cls((targets - low).clamp(0, high - low - 1), (targets >= low) & (targets < high))

    def take(self, matrix: Tensor) -> Tensor:
        """Their entries (B, P) of a matrix (B, n); 0 for those that are not here."""
        return torch.where(self.here, matrix.gather(1, self.columns), 0.0)

    def fill_(self, matrix: Tensor, value: float | bool) -> Tensor:
        """Their entries of a matrix (B, n) become ``value``, in place."""
        for column, here in self._one_by_one():
            matrix.scatter_(1, column, torch.where(here, value, matrix.gather(1, column)))
        return matrix

    def put_(self, matrix: Tensor, values: Tensor) -> Tensor:
        """Their entries of a matrix (B, n) become ``values`` (B, P), in place; sums where two are the same class."""
        self.fill_(matrix, 0.0)
        for (column, here), value in zip(self._one_by_one(), torch.split(values, 1, 1), strict=True):
            before = matrix.gather(1, column)
            matrix.scatter_(1, column, torch.where(here, before + value, before))
        return matrix

    def _one_by_one(self) -> zip[tuple[Tensor, Tensor]]:
        """Columns and whether they are here, (B, 1) each, positive by positive: a scatter must not meet itself."""
        return zip(torch.split(self.columns, 1, 1), torch.split(self.here, 1, 1), strict=True)
