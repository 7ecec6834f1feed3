"""What the heads of a module find out about their samples while a loss is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lightning_pfc.heads.loss_pass import LossOutput
from lightning_pfc.heads.partial_fc import iter_heads


@contextmanager
def target_cosines(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the heads of a module find meanwhile: cosines (b,) of this rank's samples to their centers, by head."""
    found: dict[str, Tensor] = {}

    def hook(name: str, output: LossOutput) -> None:
        found[name] = torch.cat([found[name], output.target_cosine]) if name in found else output.target_cosine

    handles = [head.register_loss_hook(partial(hook, name)) for name, head in iter_heads(module)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
