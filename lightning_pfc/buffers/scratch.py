"""Large short-lived buffers of a step, from pages that the steps before have already paid for.

The CPU allocator gives a large tensor back to the system every time, so that each step pays a page fault for every page
it writes. At 100,000 classes and a batch of 256 the gradient and the kept logits take 300 MB, and the faults took
longer than the matrix products of the backward pass.
"""

from __future__ import annotations

import mmap
import os
import sys
from math import prod

import torch
from torch import Tensor

from lightning_pfc.buffers.pages import HUGE_PAGES, anonymous_pages, has_pages

_WORTH_IT = 1 << 20  # bytes; below, the allocator keeps the memory itself
_FORGOTTEN_AFTER = 64  # requests
_WIPE_ON_FORK = 18 if sys.platform == "linux" else None  # <sys/mman.h>: a forked data loader sees zeros, copies nothing


def scratch(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor like ``like.new_empty(shape)``, on a CPU in memory that is used again.

    The memory is free again when the last tensor that lives in it is gone, whoever holds it: a gradient that a user
    keeps stays as it is. What no step has asked for lately is given back to the system.

    Args:
        shape: of the tensor.
        like: says the device, and the dtype where that is None.
        dtype: of the tensor.
    """
    dtype = dtype or like.dtype
    size = prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or type(like) is not Tensor or size < _WORTH_IT or not _POOL.works:
        return like.new_empty(shape, dtype=dtype)
    return torch.frombuffer(_POOL.take(size), dtype=dtype, count=prod(shape)).view(shape)


def release_scratch() -> None:
    """Gives the memory in which no tensor lives back to the system, as ``torch.cuda.empty_cache`` does for a GPU."""
    _POOL.release()


class _Pool:
    """Anonymous mappings that outlive the tensors in them. A mapping is free when nobody but the pool refers to it."""

    def __init__(self) -> None:
        self.works = has_pages() and sys.implementation.name == "cpython"
        self._process = os.getpid()
        self._pages: list[mmap.mmap] = []
        self._last_use: list[int] = []
        self._requests = 0

    def take(self, size: int) -> mmap.mmap:
        """A free mapping of at least ``size`` bytes and not far more."""
        if self._process != os.getpid():  # after a fork the parent's are not ours
            self.__init__()  # type: ignore[misc]
        self._requests += 1
        fitting = [i for i in self._free() if size <= len(self._pages[i]) <= 2 * size]
        pages = self._take(min(fitting, key=lambda i: len(self._pages[i]))) if fitting else self._map(size)
        self.release(before=self._requests - _FORGOTTEN_AFTER)
        return pages

    def _take(self, i: int) -> mmap.mmap:
        self._last_use[i] = self._requests
        return self._pages[i]

    def _map(self, size: int) -> mmap.mmap:
        # Room for a batch that draws a few rows more; pages that are never written cost nothing.
        pages = anonymous_pages(size + size // 8, HUGE_PAGES, _WIPE_ON_FORK)
        self._pages.append(pages)
        self._last_use.append(self._requests)
        return pages

    def release(self, before: float = float("inf")) -> None:
        """Unmap what is free and was last asked for before some request."""
        for i in reversed(self._free()):
            if self._last_use[i] < before:
                del self._pages[i], self._last_use[i]

    def _free(self) -> list[int]:
        return [i for i in range(len(self._pages)) if sys.getrefcount(self._pages[i]) == _REFERENCES_IN_A_LIST]


_ALONE = [object()]
_REFERENCES_IN_A_LIST = sys.getrefcount(_ALONE[0])  # of an object that only a list holds; versions of Python differ
_POOL = _Pool()
