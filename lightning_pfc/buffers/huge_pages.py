"""Large tables of rows in large pages of memory."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

from lightning_pfc.buffers.pages import HUGE_PAGES

_WORTH_IT = 64 << 20  # bytes


def ask_for_huge_pages(rows: Tensor) -> Tensor:
    """The same tensor, fresh and not yet written, with a request to the system to back it by pages of 2 MiB.

    Sampled rows lie all over a table of gigabytes: with pages of 4 KiB each of them misses the processor's table of
    pages, and the first write of the table pays a fault for every 4 KiB. It is advice: where the system does not take
    it (not Linux, or switched off), nothing changes.

    Args:
        rows: on any device; a CPU tensor of 64 MiB and more is advised, others are left alone.
    """
    size = rows.untyped_storage().nbytes()
    if HUGE_PAGES is None or sys.platform != "linux" or rows.device.type != "cpu" or size < _WORTH_IT:
        return rows
    start, stop = rows.data_ptr(), rows.data_ptr() + size
    first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), ctypes.c_int(HUGE_PAGES))
    return rows
