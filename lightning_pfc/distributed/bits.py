"""The bits of a tensor as one number, to compare what several ranks have."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def bit_sum(tensor: Tensor) -> Tensor:
    """The bits of a tensor added up as 64-bit integers, modulo 2^64; a 0-d int64 tensor on its device.

    A change of one value always changes it; two changes cancel with a probability of about 2^-32 or less.
    """
    data = tensor.detach()
    if not data.is_contiguous():  # in channels_last, say: the order of a sum does not matter
        data = data.permute(sorted(range(data.dim()), key=data.stride, reverse=True)).contiguous()
    raw = data.view(-1).view(torch.uint8)
    whole = raw.numel() // 8 * 8
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    if whole:
        total = raw[:whole].view(torch.int64).sum()
    if whole < raw.numel():
        tail = raw[whole:].to(torch.int64)
        total = total + (tail << (8 * torch.arange(tail.numel(), device=data.device))).sum()
    return total
