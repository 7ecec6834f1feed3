"""Effects that move the pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.data.counter import UInts
from lightning_pfc.data.effects.base import Effect, numbers


@dataclass(frozen=True, kw_only=True)
class Flip(Effect):
    """Mirror left and right."""

    probability: float = 0.5

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Mirror all of the images."""
        return images.flip(3)


@dataclass(frozen=True, kw_only=True)
class Place(Effect):
    """Turn, resize, shift, slant and stretch, sampling bilinearly.

    Attributes:
        scale: range of the factor of the size.
        rotation: largest angle in degrees, either way.
        shift: largest displacement as a share of the edge, either way.
        shear: largest factor of a slant, either way.
        stretch: width over height is multiplied by a factor between ``1 - stretch`` and ``1 + stretch``.
        outside: what comes from outside: "black", or the nearest pixel of the "edge".
    """

    scale: tuple[float, float] = (0.8, 1.2)
    rotation: float = 20.0
    shift: float = 0.0
    shear: float = 0.0
    stretch: float = 0.0
    outside: Literal["black", "edge"] = "black"

    def check(self) -> None:
        """Refuse factors without meaning."""
        self._require("scale", 0 < self.scale[0] <= self.scale[1], "be a range above 0")
        self._require("rotation", 0 <= self.rotation <= 180, "lie in [0, 180]")
        self._require("shift", 0 <= self.shift <= 1, "lie in [0, 1]")
        self._require("shear", 0 <= self.shear <= 1, "lie in [0, 1]")
        self._require("stretch", 0 <= self.stretch < 1, "lie in [0, 1)")
        self._require("outside", self.outside in ("black", "edge"), "be black or edge")

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Place all of the images anew."""
        slants = bool(self.shear or self.stretch)
        u = numbers(keys, 6 if slants else 4)
        zoom = 1.0 / (self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 0])
        angle = (2 * u[:, 1] - 1) * math.radians(self.rotation)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        shift = (2 * u[:, 2:4] - 1) * 2 * self.shift
        theta = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], dim=1)
        if slants:
            theta = theta @ self._slant(2 * u[:, 4] - 1, 2 * u[:, 5] - 1)
        grid = F.affine_grid(torch.cat([theta, shift[..., None]], 2), list(images.shape), align_corners=False)
        padding = "zeros" if self.outside == "black" else "border"
        return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)

    def _slant(self, shear: Tensor, stretch: Tensor) -> Tensor:
        """(b,) and (b,) numbers in [-1, 1] to (b, 2, 2)."""
        wide = (1 + self.stretch * stretch).sqrt()
        none = torch.zeros_like(wide)
        rows = [torch.stack([1 / wide, self.shear * shear * wide], 1), torch.stack([none, wide], 1)]
        return torch.stack(rows, dim=1)
