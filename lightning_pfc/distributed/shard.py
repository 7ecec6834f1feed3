"""The partition of the classes: a pure function of three numbers, so that it is tested without a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClassShard:
    """The contiguous range of global class ids that one rank owns.

    With ``s = ceil(C / W)``, rank ``r`` owns ``range(min(r*s, C), min((r+1)*s, C))``: the split of ``torch.chunk`` and
    of ``DTensor``, so that a checkpoint in global coordinates needs no translation.

    Args:
        num_classes: C, the number of classes over all ranks.
        rank: this rank's place among the ranks that share the classes.
        world_size: W, how many ranks share the classes.

    Raises:
        ValueError: if a number is out of range, or if *any* rank would own nothing (every rank raises alike, so that
            none is left waiting in a collective).

    Example:
        >>> [ClassShard(7, rank, 3).range for rank in range(3)]
        [range(0, 3), range(3, 6), range(6, 7)]
    """

    num_classes: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes} must be at least 1.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} must lie in [0, world_size) with world_size={self.world_size}.")
        if (self.world_size - 1) * self.rows_per_rank >= self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes} split over {self.world_size} ranks in parts of {self.rows_per_rank} "
                f"leaves the last rank without a class; use at most {self.largest_world_size()} ranks."
            )

    @property
    def rows_per_rank(self) -> int:
        """Rows of every rank but perhaps the last: ``ceil(C / W)``."""
        return -(-self.num_classes // self.world_size)

    @property
    def start(self) -> int:
        """First global class id of this rank."""
        return min(self.rank * self.rows_per_rank, self.num_classes)

    @property
    def stop(self) -> int:
        """One past the last global class id of this rank."""
        return min((self.rank + 1) * self.rows_per_rank, self.num_classes)

    @property
    def range(self) -> range:
        """The global class ids of this rank."""
        return range(self.start, self.stop)

    @property
    def num_local(self) -> int:
        """How many classes live here: ``c``."""
        return self.stop - self.start

    def owns(self, ids: Tensor) -> Tensor:
        """Which of the global class ids live here: int64 of any shape -> bool of that shape; -1 lives nowhere."""
        return (ids >= self.start) & (ids < self.stop)

    def local_rows(self, ids: Tensor) -> Tensor:
        """The local rows (m,) of those of the global class ids (n,) that live here; waits for an accelerator."""
        return ids[self.owns(ids)] - self.start

    def largest_world_size(self) -> int:
        """The largest number of ranks, not above ``world_size``, that leaves no rank empty."""
        for ranks in range(min(self.world_size, self.num_classes), 0, -1):
            if (ranks - 1) * -(-self.num_classes // ranks) < self.num_classes:
                return ranks
        return 1
