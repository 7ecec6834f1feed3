"""Classes that are dealt out evenly to ranks, the first ranks having one more."""

from __future__ import annotations

from itertools import pairwise


def even_ranges(total: int, ranks: int) -> list[tuple[int, int]]:
    """The first class of each rank, and the one behind its last.

    Raises:
        ValueError: for fewer classes than ranks.
    """
    if not 1 <= ranks <= total:
        raise ValueError(f"--ranks={ranks} must lie in [1, {total}], the number of classes.")
    starts = [total // ranks * rank + min(rank, total % ranks) for rank in range(ranks + 1)]
    return list(pairwise(starts))
