"""A head in as many rows for each rank, as MXNet's Partial FC and CVLface keep it: the last rows may be of no class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_pfc.interchange.exported import Exported
from lightning_pfc.interchange.ranges import even_ranges


def in_equal_parts(source: Exported, folder: Path, ranks: int, write: Callable[[Path, int, Tensor], None]) -> str:
    """Write a file for each rank, all with as many rows; the last ones may be zeros, of no class.

    Args:
        source: whose centers.
        folder: to write into.
        ranks: how many.
        write: takes the folder, the rank and its rows.

    Returns:
        What to say of it.

    Raises:
        ValueError: there are fewer classes than ranks.
    """
    total = source.num_classes
    even_ranges(total, ranks)  # sees that there are as many classes
    each = -(-total // ranks)
    for rank in range(ranks):
        start, stop = min(rank * each, total), min((rank + 1) * each, total)
        rows = source.rows(start, stop) if start < stop else source.rows(0, 1)[:0]
        write(folder, rank, torch.nn.functional.pad(rows, (0, 0, 0, each - len(rows))))
    left = each * ranks - total
    said = f"for {ranks} rank{'s' if ranks > 1 else ''}"
    return source.say(said, *([f"rows of no class: {left}"] if left else []))
