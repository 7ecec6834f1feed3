"""What a parameter is a shard of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_pfc.distributed import ClassShard, Comm
from lightning_pfc.distributed.class_rows import class_rows


@dataclass(frozen=True, eq=False)
class RowShard:
    """Which rows of a whole parameter these are, and who has the others.

    Attributes:
        rows: the range of rows, ``(start, stop)`` of ``num_classes``.
        comm: the ranks; ``comm.shard_group`` holds all rows once.
    """

    rows: ClassShard
    comm: Comm


def row_shard(param: Tensor) -> RowShard | None:
    """Which rows of a whole ``param`` holds; None of a parameter that every rank has whole."""
    record = class_rows(param)
    if record is None or record.comm is None or record.comm.shard_size == 1:
        return None
    return RowShard(record.shard, record.comm)
