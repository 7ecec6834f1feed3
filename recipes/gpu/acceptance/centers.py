"""Initial centers drawn where they live: the numbers of the host would take longer than all the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_pfc.heads import center_init

_ROWS = 1 << 16  # of a stream of its own


@contextmanager
def centers_drawn_on(device: torch.device) -> Iterator[None]:
    """While open, the centers of new heads are drawn on a GPU, of the same distribution; elsewhere nothing changes.

    Which numbers they are depends on seed and class alone, so that a head in the host's memory begins as one on the
    device does.
    """
    if device.type != "cuda":
        yield
        return

    def fill(out: Tensor, start: int, seed: int, std: float, unit_dim: int | None = None) -> Tensor:
        for low in range(0, out.shape[0], _ROWS):
            part = out[low : low + _ROWS]
            generator = torch.Generator(device).manual_seed(seed * 1_000_003 + start + low)
            rows = torch.empty(part.shape, device=device).normal_(0.0, std, generator=generator)
            if unit_dim is not None:
                rows = torch.nn.functional.normalize(rows.view(-1, unit_dim), dim=1).view(part.shape)
            with torch.no_grad():
                part.copy_(rows)
        return out

    before = center_init.init_centers_
    center_init.init_centers_ = fill
    try:
        yield
    finally:
        center_init.init_centers_ = before
