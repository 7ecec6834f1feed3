"""Rows of a table on the device of the computation, wherever the table is kept."""

from __future__ import annotations

import torch
from torch import Tensor


def is_offloaded(table: Tensor, device: torch.device) -> bool:
    """Whether the table has to be read from another device: centers in the host's memory beside a GPU."""
    return table.device != device


def take_rows(table: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of a table, in new storage.

    Where the table is kept elsewhere the host waits once, for the row numbers.

    Args:
        table: (c, ...), on any device.
        rows: (n,) int64, on any device.
        device: where the rows go.

    Returns:
        (n, ...) in the dtype of the table.
    """
    if not is_offloaded(table, device):
        return table.index_select(0, rows)
    return stage_pinned(table, rows.to(table.device)).to(device, non_blocking=True)


def stage_pinned(table: Tensor, rows: Tensor | slice) -> Tensor:
    """Rows of a table of the host, gathered where a GPU fetches them by itself.

    The copy that follows need not be waited for: the next rows are gathered while the GPU computes with these. Each
    call takes a buffer of its own from torch's allocator of pinned memory, which gives none out again before the copy
    from it is done.

    Args:
        table: (c, ...) on a CPU.
        rows: (n,) int64 on a CPU, or a slice, which is a view.
    """
    if isinstance(rows, slice):
        return table[rows]
    out = table.new_empty((rows.shape[0], *table.shape[1:]), pin_memory=torch.cuda.is_available())
    return torch.index_select(table, 0, rows, out=out)


def bring_back(values: Tensor, device: torch.device) -> Tensor:
    """Numbers where they are to be kept: from a GPU to the host through pinned memory, at the speed of the bus.

    Into memory that is not pinned such a copy is a third as fast (predicted), since the driver copies it twice. The
    host waits once, as it would there; torch's allocator gives the memory out again for the next ones.

    Args:
        values: on any device; themselves where they are on ``device`` already.
        device: where they go.
    """
    if device.type != "cpu" or values.device.type != "cuda" or not torch.cuda.is_available():
        return values.to(device)
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
