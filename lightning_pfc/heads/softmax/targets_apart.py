"""The targets apart from all other classes, in float32: their cosines, and what they add to both gradients.

In half precision p - 1 is 0 from p = 1 - 1e-3 on, and with it the gradient of everything that is learned well. So a
target's score is a dot product of its own, its exponential is left out of the sums that are rounded, and its part of
both gradients is added separately.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_pfc.kernels.library import takes_kernels
from lightning_pfc.kernels.targets import link_equal, target_gradients_


class TargetsApart:
    """Where the positives of a batch stand among the sampled rows of this rank.

    Shapes: B rows of the batch, P positives a row, K sampled rows of this rank's centers, D embedding.

    Args:
        columns: (B, P) int64, columns among the K; -1 where another rank owns the class, or for none.
        ranges: of the chunks of classes, ascending and without gaps.
    """

    def __init__(self, columns: Tensor, ranges: Sequence[tuple[int, int]]) -> None:
        self.columns = columns
        self._ranges = list(ranges)
        self._places: list[tuple[Tensor, Tensor]] | None = None
        if not takes_kernels(columns) and type(columns) is Tensor:
            self._places = self._by_chunk()

    def _by_chunk(self) -> list[tuple[Tensor, Tensor]]:
        """For every chunk the positives that are in it, as entries of the flat (B P) and as columns of the chunk."""
        ordered, order = self.columns.flatten().sort(stable=True)
        edges = torch.tensor([low for low, _ in self._ranges] + [self._ranges[-1][1]] if self._ranges else [0])
        bounds = torch.searchsorted(ordered, edges).tolist()
        parts = zip(self._ranges, bounds[:-1], bounds[1:], strict=True)
        return [(order[first:last], ordered[first:last] - low) for (low, _), first, last in parts]

    def within(self, chunk: int) -> Tensor:
        """Columns (B, P) within a chunk; -1 for those that are elsewhere."""
        low, high = self._ranges[chunk]
        if len(self._ranges) == 1:
            return self.columns
        return torch.where((self.columns >= low) & (self.columns < high), self.columns - low, -1)

    def first(self, chunk: int) -> int:
        """The first column of a chunk."""
        return self._ranges[chunk][0]

    @functools.cached_property
    def _following(self) -> Tensor:
        return link_equal(self.columns)

    def remove_(self, chunk: int, exponentials: Tensor) -> Tensor:
        """Set the targets' entries of a chunk (B, n) to 0, in place."""
        if self._places is not None:
            entries, columns = self._places[chunk]
            if entries.numel():
                rows = torch.div(entries, self.columns.shape[1], rounding_mode="floor")
                exponentials[rows, columns] = 0.0
            return exponentials
        for column in torch.split(self.within(chunk), 1, 1):
            place = column.clamp(min=0)
            exponentials.scatter_(1, place, torch.where(column >= 0, 0.0, exponentials.gather(1, place)))
        return exponentials

    def add_center_grad_(self, chunk: int, unit_grad: Tensor, x: Tensor, target_grad: Tensor) -> Tensor:
        """Add ``target_grad * x`` to the gradient of the targets' unit rows of a chunk (n, D), in place.

        Entries that share a class are added up in the order of the batch.

        Args:
            chunk: its number.
            unit_grad: (n, D).
            x: (B, D).
            target_grad: (B, P) d loss / d cosine.
        """
        positives = self.columns.shape[1]
        if self._places is not None:
            entries, columns = self._places[chunk]
            if entries.numel():
                rows = torch.div(entries, positives, rounding_mode="floor")
                # index_put_ would add up rows that entries share in any order, as threads come
                unit_grad.index_add_(0, columns, target_grad.flatten()[entries, None] * x[rows])
            return unit_grad
        target_grad = target_grad.contiguous()
        first, following = self.first(chunk), self._following
        kernels = None if takes_kernels(x) else ()
        target_gradients_(
            x, x, None, self.columns, target_grad, None, unit_grad, True, first, following, kernels=kernels
        )
        return unit_grad

    def once(self) -> Tensor:
        """(B, P) 1.0 for each class that is a positive of a row and lives here, once however often it is named."""
        same = self.columns[:, :, None] == self.columns[:, None, :]
        return ((self.columns >= 0) & ~same.tril(-1).any(2)).float()


def target_cosines(x: Tensor, units: Tensor, columns: Tensor) -> Tensor:
    """Cosines (B, P) of the rows ``x`` (B, D) with their targets' ``units`` (B P, D); 0 where there is none."""
    every: Tensor = torch.linalg.vecdot(units.view(*columns.shape, -1), x[:, None])
    return torch.where(columns >= 0, every, 0.0)


def target_x_grad(target_grad: Tensor, units: Tensor, columns: Tensor) -> Tensor:
    """Gradient (B, D) that reaches the embeddings through their targets' cosines; shapes as above."""
    own = torch.where(columns >= 0, target_grad, 0.0)
    return torch.bmm(own[:, None], units.view(*columns.shape, -1))[:, 0]
