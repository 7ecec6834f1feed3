"""Effects on colours and brightness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.data.counter import UInts
from lightning_pfc.data.effects.base import Effect, between, numbers

# Luma of ITU-R BT.601, and the axes of its YIQ space, in which a hue is an angle.
LUMA = (0.299, 0.587, 0.114)
_YIQ = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
_RGB = torch.linalg.inv(_YIQ)


def luma(images: Tensor) -> Tensor:
    """(b, C, H, W) to (b, 1, H, W): brightness as the eye sees it; grey images are their own."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Grey(Effect):
    """Take the colours away."""

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Replace all channels by the luma."""
        return luma(images).expand_as(images)


@dataclass(frozen=True, kw_only=True)
class HueSaturation(Effect):
    """Turn the hues and strengthen the colours, by a matrix in YIQ space. Grey images stay as they are.

    Attributes:
        hue: range of the angle in degrees.
        saturation: range of the factor.
    """

    hue: tuple[float, float] = (0.0, 20.0)
    saturation: tuple[float, float] = (1.0, 1.2)

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Transform the colours of all images."""
        if images.shape[1] != 3:
            return images
        return torch.einsum("bij,bjhw->bihw", self.draw(keys), images).clamp_(0.0, 1.0)

    def draw(self, keys: UInts) -> Tensor:
        """(b,) keys of :meth:`apply` to the (b, 3, 3) matrices that colours are multiplied with."""
        u = numbers(keys, 2)
        angle = torch.deg2rad(self.hue[0] + (self.hue[1] - self.hue[0]) * u[:, 0])
        factor = self.saturation[0] + (self.saturation[1] - self.saturation[0]) * u[:, 1]
        turn = torch.zeros(len(keys), 3, 3)
        turn[:, 0, 0] = 1.0
        turn[:, 1, 1] = turn[:, 2, 2] = factor * angle.cos()
        turn[:, 1, 2], turn[:, 2, 1] = -factor * angle.sin(), factor * angle.sin()
        matrices: Tensor = _RGB @ turn @ _YIQ
        return matrices


@dataclass(frozen=True, kw_only=True)
class Photometric(Effect):
    """Change brightness, contrast and saturation, each by a factor between ``1 - amount`` and ``1 + amount``.

    Attributes:
        brightness, contrast, saturation: the amounts.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5

    def check(self) -> None:
        """Refuse amounts that are not shares."""
        for name in ("brightness", "contrast", "saturation"):
            self._require(name, 0 <= getattr(self, name) <= 1, "lie in [0, 1]")

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Change all of the images."""
        u = numbers(keys, 3)
        x = (images * between(u[:, 0], 1 - self.brightness, 1 + self.brightness)).clamp_(0.0, 1.0)
        mean = luma(x).mean((2, 3), keepdim=True)
        x = (mean + (x - mean) * between(u[:, 1], 1 - self.contrast, 1 + self.contrast)).clamp_(0.0, 1.0)
        grey = luma(x)
        return (grey + (x - grey) * between(u[:, 2], 1 - self.saturation, 1 + self.saturation)).clamp_(0.0, 1.0)
