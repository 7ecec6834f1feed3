"""Large short-lived buffers of a step, without the page faults of a fresh allocation."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import Tensor

_PAGE = 4096
_MADV_HUGEPAGE = 14  # <sys/mman.h> of Linux
_WORTH_IT = 8 << 20  # bytes


def huge_pages(buffer: Tensor) -> Tensor:
    """Ask the kernel for 2 MiB pages behind a fresh CPU buffer that will be written whole, and return it.

    The CPU allocator gives a large tensor back to the system every time, so each step pays a page fault for every 4 KiB
    it
    writes: 58 ms instead of 17 ms for 200 MB, measured. Only advice: without support nothing happens. Not for memory of
    which only parts are ever touched.
    """
    size = buffer.numel() * buffer.element_size()
    advise = _madvise()
    if advise is not None and buffer.device.type == "cpu" and size >= _WORTH_IT:
        start = -(-buffer.data_ptr() // _PAGE) * _PAGE
        stop = (buffer.data_ptr() + size) // _PAGE * _PAGE
        advise(start, stop - start, _MADV_HUGEPAGE)
    return buffer


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    call: Callable[[int, int, int], int] = function
    return call
