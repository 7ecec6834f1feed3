"""Tensors of zeros whose memory is taken only where it is written."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor


def zero_pages(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros that cost memory page by page, when a page is first written.

    ``torch.zeros`` writes every element and so commits all of it; ``numpy.zeros`` asks the kernel for huge pages, and
    one row then commits two megabytes. State of rows that are never sampled should cost nothing, so on a CPU the memory
    is a private anonymous mapping with huge pages turned off. On other devices, and where the system has no such
    mapping, this is ``torch.zeros``.

    Args:
        shape: Shape of the tensor, any number of dimensions.
        dtype: Its element type; the bit pattern of zero is all zeros in every type of PyTorch.
        device: Where it lives.

    Returns:
        A contiguous tensor of zeros. Its storage cannot be resized; everything else works as usual.
    """
    device = torch.device(device)
    num_bytes = prod(shape) * dtype.itemsize
    if device.type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS") or num_bytes < mmap.PAGESIZE:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    # Private: the pages of a shared anonymous mapping are taken when they are read, too.
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel built without huge pages refuses the advice, and needs none
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))
