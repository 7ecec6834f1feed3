"""Rows of a table of the host, gathered by a thread while the device does something else."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.buffers.host_rows import stage_pinned

_threads: list[ThreadPoolExecutor] = []


class StagedRows:
    """Some rows of a table, as they were when this was made; of no use once the table has changed.

    The thread waits for the row numbers, so that the caller need not, and gathers where a GPU fetches by itself.

    Args:
        table: (c, ...) on a CPU.
        rows: (n,) int64, on any device.
    """

    def __init__(self, table: Tensor, rows: Tensor) -> None:
        self._table, self._version = table, table._version
        self._rows, self._arrived = _on_its_way(rows)
        if not _threads:
            _threads.append(ThreadPoolExecutor(1, "staged rows"))
        self._found: Future[Tensor] = _threads[0].submit(self._gather)

    @property
    def index(self) -> Tensor:
        """The row numbers (n,), on the CPU; the host waits for them if they are not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._rows

    def take(self, table: Tensor, low: int, high: int) -> Tensor | None:
        """Rows ``low`` to ``high`` of those asked for; None where ``table`` is another one, or has changed since.

        Args:
            table: the same, (c, ...).
            low: place of the first among the row numbers.
            high: place after the last.
        """
        if table.data_ptr() != self._table.data_ptr() or table._version != self._version:
            return None
        return self._found.result()[low:high]

    @torch.no_grad()
    def _gather(self) -> Tensor:
        return stage_pinned(self._table, self.index)


def _on_its_way(rows: Tensor) -> tuple[Tensor, Any]:
    """Row numbers on the CPU, and what tells that they have arrived; None where they are there."""
    if rows.device.type != "cuda" or not torch.cuda.is_available():
        return rows.to("cpu"), None
    # a copy that a thread asks for would wait for all that was given to the GPU before: the whole backbone
    out = torch.empty(rows.shape, dtype=rows.dtype, device="cpu", pin_memory=True)
    out.copy_(rows, non_blocking=True)
    arrived = torch.Event(rows.device.type)
    arrived.record()
    return out, arrived
