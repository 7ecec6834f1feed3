"""What a camera adds to a printed picture, a whole batch at once: place, size, turn, stroke, blur, light, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.counter import UInts, noise, uniform

_DRAWS = 12  # uniform numbers per image


@checked
@dataclass(frozen=True, kw_only=True)
class CameraAugmentation:
    """Random camera effects on small grey or colour pictures, bright on black; every one can be switched off by 0.

    Attributes:
        shift: largest displacement, as a fraction of the edge, in each direction.
        scale: the size is multiplied by a factor between ``1 - scale`` and ``1 + scale``.
        rotation: largest angle in degrees, either way.
        shear: largest shear factor, either way.
        stretch: width over height is multiplied by a factor between ``1 - stretch`` and ``1 + stretch``.
        stroke: largest change of stroke width: at 1, up to one pixel is added to or taken from every edge.
        blur: largest standard deviation of the blur in pixels, up to 1.
        contrast: the ink is dimmed and the ground lifted by up to this fraction of the range each.
        noise: largest standard deviation of the noise, as a fraction of the range.
        strength: multiplies all of the above.
    """

    shift: float = 0.06
    scale: float = 0.12
    rotation: float = 7.0
    shear: float = 0.1
    stretch: float = 0.1
    stroke: float = 0.6
    blur: float = 0.7
    contrast: float = 0.2
    noise: float = 0.08
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "shift",
            "scale",
            "rotation",
            "shear",
            "stretch",
            "stroke",
            "blur",
            "contrast",
            "noise",
            "strength",
        ):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r} must be a number of at least 0; 0 switches the effect off.")
        for name, limit in (("scale", 1.0), ("stretch", 1.0), ("contrast", 0.5), ("blur", 1.0), ("stroke", 1.0)):
            if (value := getattr(self, name) * self.strength) > limit or (
                name in ("scale", "stretch") and value == limit
            ):
                raise ValueError(f"{name} * strength = {value:g} is too large; the limit is {limit:g}.")

    def __call__(self, images: Tensor, keys: UInts) -> Tensor:
        """Augment a batch.

        Args:
            images: (b, C, H, W) uint8.
            keys: (b,) uint64, one stream per image (:func:`lightning_pfc.data.counter.stream`); an image's result
                depends on its own key alone.

        Returns:
            (b, C, H, W) float32 in [-1, 1].
        """
        # [-1, 1) numbers, a column per effect
        u = torch.from_numpy(uniform(keys, _DRAWS)) * 2.0 - 1.0
        x = images.to(torch.float32).mul_(1.0 / 255.0)
        x = self._strokes(x, u[:, 0])
        x = self._place(x, u[:, 1:7])
        x = self._blur(x, u[:, 7])
        x = self._light(x, u[:, 8:10])
        x = self._grain(x, u[:, 10], keys)
        return x.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)

    def _strokes(self, x: Tensor, u: Tensor) -> Tensor:
        amount = self.stroke * self.strength
        if amount == 0:
            return x
        # Thinning is thickening of the negative, so one dilation serves both; 3 x 3 maxima are taken row- then
        # columnwise.
        sign = torch.where(u < 0, -1.0, 1.0).view(-1, 1, 1, 1)
        signed = x * sign
        wide = signed.clone()
        for dim in (2, 3):
            n = x.shape[dim]
            before = wide.clone()
            for to, source in ((1, 0), (0, 1)):
                part = wide.narrow(dim, to, n - 1)
                torch.maximum(part, before.narrow(dim, source, n - 1), out=part)
        return x + (wide - signed) * (u * amount).view(-1, 1, 1, 1)

    def _place(self, x: Tensor, u: Tensor) -> Tensor:
        s = self.strength
        if not any((self.shift, self.scale, self.rotation, self.shear, self.stretch)) or s == 0:
            return x
        angle = u[:, 0] * math.radians(self.rotation * s)
        zoom = 1.0 / (1.0 + u[:, 1] * self.scale * s)
        stretch = (1.0 + u[:, 2] * self.stretch * s).sqrt()
        cos, sin, shear = angle.cos() * zoom, angle.sin() * zoom, u[:, 3] * self.shear * s
        theta = torch.stack(
            [
                torch.stack([cos / stretch, (cos * shear - sin) * stretch, u[:, 4] * 2 * self.shift * s], dim=1),
                torch.stack([sin / stretch, (sin * shear + cos) * stretch, u[:, 5] * 2 * self.shift * s], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _blur(self, x: Tensor, u: Tensor) -> Tensor:
        if self.blur * self.strength == 0:
            return x
        # A three-tap kernel (w, 1 - 2w, w) has variance 2w; sigma up to 1 pixel would need w = 1/2, 1/3 is a box.
        sigma = (u + 1.0) * (0.5 * self.blur * self.strength)
        w = (0.5 * sigma * sigma).clamp(max=1.0 / 3.0).view(-1, 1, 1, 1)
        for dim in (2, 3):
            n = x.shape[dim]
            sides = torch.zeros_like(x)
            sides.narrow(dim, 1, n - 1).add_(x.narrow(dim, 0, n - 1))
            sides.narrow(dim, 0, n - 1).add_(x.narrow(dim, 1, n - 1))
            x = x + w * (sides - 2.0 * x)
        return x

    def _light(self, x: Tensor, u: Tensor) -> Tensor:
        amount = 0.5 * self.contrast * self.strength
        if amount == 0:
            return x
        ground = ((u[:, 0] + 1.0) * amount).view(-1, 1, 1, 1)
        ink = (1.0 - (u[:, 1] + 1.0) * amount).view(-1, 1, 1, 1)
        return ground + (ink - ground) * x

    def _grain(self, x: Tensor, u: Tensor, keys: UInts) -> Tensor:
        amount = 0.5 * self.noise * self.strength
        if amount == 0:
            return x
        # Another stream than the numbers above: the same key, with all bits turned.
        grain = torch.from_numpy(noise(~keys, x[0].numel())).view(x.shape)
        return x.addcmul_(grain, ((u + 1.0) * amount).view(-1, 1, 1, 1))


def to_float(images: Tensor) -> Tensor:
    """(b, C, H, W) uint8 to float32 in [-1, 1]: what evaluation sees."""
    return to_unit_(images.to(torch.float32))


def to_unit_(pixels: Tensor) -> Tensor:
    """(b, C, H, W) float32 pixels in 0..255 to [-1, 1], in place."""
    return pixels.mul_(1.0 / 127.5).sub_(1.0)
