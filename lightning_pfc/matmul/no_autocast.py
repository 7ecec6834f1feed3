"""Autocast off, for devices that have it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off while open: a head computes in the precision that it was given, whatever surrounds it.

    Tensors without storage (device "meta") have no autocast that could be on.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
