"""Tensors of zeros whose memory is taken only where it is written."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from lightning_pfc.buffers.pages import SMALL_PAGES, anonymous_pages, has_pages


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
    if device.type != "cpu" or not has_pages() or num_bytes < mmap.PAGESIZE:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    return torch.frombuffer(anonymous_pages(num_bytes, SMALL_PAGES), dtype=dtype).view(tuple(shape))
