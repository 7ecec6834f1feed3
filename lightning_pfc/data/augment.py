"""Augmentation by the batch: an image changes by its own key alone, so no batch, worker or rank matters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.data.camera import to_float
from lightning_pfc.data.counter import UInts, uniform


@dataclass(frozen=True, kw_only=True)
class RandomFlip:
    """Mirror left and right: all that the published Partial FC recipes do to faces.

    Attributes:
        probability: of an image to be mirrored.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability} must lie in [0, 1].")

    def __call__(self, images: Tensor, keys: UInts) -> Tensor:
        """(b, C, H, W) uint8 and (b,) keys to (b, C, H, W) float32 in [-1, 1]."""
        x = to_float(images)
        if self.probability == 0:
            return x
        mirrored = torch.from_numpy(uniform(keys, 1)[:, 0]) < self.probability
        return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
