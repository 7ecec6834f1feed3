"""Effects that hide a part of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.data.counter import UInts, noise
from lightning_pfc.data.effects.base import Effect, numbers


@dataclass(frozen=True, kw_only=True)
class KeepCrop(Effect):
    """Keep a random rectangle where it is and make the rest black: a face cut by the edge or an object.

    Attributes:
        area: range of the rectangle's share of the image.
        ratio: range of its width over height, before it is cut to the image.
    """

    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)

    def check(self) -> None:
        """Refuse shares and ratios without meaning."""
        self._require("area", 0 < self.area[0] <= self.area[1] <= 1, "be a range within (0, 1]")
        self._require("ratio", 0 < self.ratio[0] <= self.ratio[1], "be a range above 0")

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Black out all but a rectangle of each image."""
        return images * _rectangles(images, keys, self.area, self.ratio)


@dataclass(frozen=True, kw_only=True)
class Erase(Effect):
    """Put noise, or black, in the place of a random rectangle.

    Random erasing (arXiv:1708.04896) with noise, cut-out (arXiv:1708.04552) with black.

    Attributes:
        area: range of the rectangle's share of the image.
        ratio: range of its width over height, before it is cut to the image.
        fill: "noise" or "black".
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: str = "noise"

    def check(self) -> None:
        """Refuse shares and ratios without meaning."""
        self._require("area", 0 < self.area[0] <= self.area[1] <= 1, "be a range within (0, 1]")
        self._require("ratio", 0 < self.ratio[0] <= self.ratio[1], "be a range above 0")
        self._require("fill", self.fill in ("noise", "black"), 'be "noise" or "black"')

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Erase a rectangle of each image."""
        inside = _rectangles(images, keys, self.area, self.ratio)
        if self.fill == "black":
            return images * (1.0 - inside)
        grain = torch.from_numpy(noise(~keys, images[0].numel())).view(images.shape)
        return torch.lerp(images, (0.5 + 0.25 * grain).clamp_(0.0, 1.0), inside)


def _rectangles(images: Tensor, keys: UInts, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """(b, 1, H, W): 1 inside a random rectangle of each image, 0 outside."""
    height, width = images.shape[2:]
    u = numbers(keys, 4)
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[:, 1])
    tall = (share / aspect).sqrt().mul(height).round().clamp(1, height)
    wide = (share * aspect).sqrt().mul(width).round().clamp(1, width)
    top, left = (u[:, 2] * (height - tall + 1)).floor(), (u[:, 3] * (width - wide + 1)).floor()
    row, column = torch.arange(height), torch.arange(width)
    rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
    columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    return (rows[:, :, None] & columns[:, None, :]).to(images.dtype).unsqueeze(1)
