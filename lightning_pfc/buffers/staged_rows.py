"""Rows of a table of the host, fetched by a thread while the device does something else."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_pfc.buffers import side_stream
from lightning_pfc.buffers.host_rows import stage_pinned

AHEAD_BYTES = 1 << 29
"""Rows up to this size go to the device when they are fetched; more stay on the host, and go a chunk at a time."""
PIECE_BYTES = 32 << 20
"""Of rows that are gathered while the piece before is copied."""

_threads: list[ThreadPoolExecutor] = []


class _Fetched(NamedTuple):
    """Rows (n, ...), and from when on the device may read them; None for rows that stay on the host."""

    rows: Tensor
    arrived: Any
    is_there: bool


class StagedRows:
    """Some rows of a table, as they were when this was made; of no use once the table has changed.

    A thread waits for the row numbers, so that the caller need not, gathers the rows where a GPU fetches them by
    itself, and has them copied beside what the GPU computes.

    Args:
        table: (c, ...) on a CPU.
        rows: (n,) int64, on any device.
        device: that will read them.
    """

    def __init__(self, table: Tensor, rows: Tensor, device: torch.device) -> None:
        self._table, self._version, self._device = table, table._version, device
        self._streams = side_stream.streams_of(device)
        self._rows, self._arrived = _on_its_way(rows)
        if not _threads:
            _threads.append(ThreadPoolExecutor(1, "staged rows"))
        self._found: Future[_Fetched] = _threads[0].submit(self._gather)

    @property
    def index(self) -> Tensor:
        """The row numbers (n,), on the CPU; the host waits for them if they are not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._rows

    def take(self, table: Tensor) -> Tensor | None:
        """The rows (n, ...); None where ``table`` is another one than was given, or has changed since.

        They are on the device, or on the host where they are too many (``AHEAD_BYTES``). Not to be written to.
        """
        if table.data_ptr() != self._table.data_ptr() or table._version != self._version:
            return None
        found = self._found.result()
        if found.is_there:
            self._streams.follow(found.arrived, found.rows)
        return found.rows

    def take_there(self, table: Tensor) -> Tensor | None:
        """All of them, where they are on the device; see :meth:`take`."""
        found = self.take(table)
        return found if found is not None and found.device == self._device else None

    @torch.no_grad()
    def _gather(self) -> _Fetched:
        table, index = self._table, self.index
        size = table[:1].numel() * table.element_size()
        if index.shape[0] * size > AHEAD_BYTES:
            return _Fetched(stage_pinned(table, index), None, is_there=False)
        step = max(1, PIECE_BYTES // max(1, size))
        with self._streams.beside():
            out = table.new_empty((index.shape[0], *table.shape[1:]), device=self._device)
            for low in range(0, index.shape[0], step):
                out[low : low + step].copy_(stage_pinned(table, index[low : low + step]), non_blocking=True)
            return _Fetched(out, self._streams.mark(), is_there=True)


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
