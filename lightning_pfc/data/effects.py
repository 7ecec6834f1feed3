"""Single effects on batches of colour pictures, the steps of an augmentation pipeline.

A step maps (b, C, H, W) float32 in [0, 1] and (b,) uint64 keys to the same shape and range. Each image is changed with
the step's probability, by numbers of its own key alone. Where papers give ranges, they are the defaults.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.data.counter import UInts, noise, stream, uniform

# Luma of ITU-R BT.601, and the axes of its YIQ space, in which a hue is an angle.
LUMA = (0.299, 0.587, 0.114)
_YIQ = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
_RGB = torch.linalg.inv(_YIQ)


@dataclass(frozen=True, kw_only=True)
class Effect(ABC):
    """An effect on a share of the images.

    Attributes:
        probability: of an image to be changed.
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"{type(self).__name__}: probability={self.probability} must lie in [0, 1].")
        self.check()

    def check(self) -> None:  # noqa: B027 - most effects have nothing to refuse
        """Refuse arguments without meaning."""

    def _require(self, name: str, condition: bool, text: str) -> None:
        if not condition:
            raise ValueError(f"{type(self).__name__}: {name}={getattr(self, name)!r} must {text}.")

    def __call__(self, images: Tensor, keys: UInts) -> Tensor:
        """Change some of the images; the input is left as it is."""
        chosen = np.flatnonzero(self.chosen(keys))
        if not len(chosen):
            return images
        if len(chosen) == len(images):
            return self.apply(images, self.inner(keys))
        changed = images.clone()
        rows = torch.from_numpy(chosen)
        changed[rows] = self.apply(images[rows], self.inner(keys[chosen]))
        return changed

    def chosen(self, keys: UInts) -> NDArray[np.bool_]:
        """(b,) keys to (b,): which images are changed."""
        return np.asarray(uniform(keys, 1)[:, 0] < self.probability)

    def inner(self, keys: UInts) -> UInts:
        """(b,) keys to the (b,) keys that :meth:`apply` gets."""
        return stream(keys, 1)

    @abstractmethod
    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Change all of the images."""


def _numbers(keys: UInts, count: int) -> Tensor:
    """(b, count) uniform numbers in [0, 1)."""
    return torch.from_numpy(uniform(keys, count))


def _between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers stretched to a range, ready to be broadcast over (b, C, H, W)."""
    return (low + (high - low) * u).view(-1, 1, 1, 1)


def luma(images: Tensor) -> Tensor:
    """(b, C, H, W) to (b, 1, H, W): brightness as the eye sees it; grey images are their own."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Flip(Effect):
    """Mirror left and right."""

    probability: float = 0.5

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Mirror all of the images."""
        return images.flip(3)


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
        u = _numbers(keys, 2)
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
        u = _numbers(keys, 3)
        x = (images * _between(u[:, 0], 1 - self.brightness, 1 + self.brightness)).clamp_(0.0, 1.0)
        mean = luma(x).mean((2, 3), keepdim=True)
        x = (mean + (x - mean) * _between(u[:, 1], 1 - self.contrast, 1 + self.contrast)).clamp_(0.0, 1.0)
        grey = luma(x)
        return (grey + (x - grey) * _between(u[:, 2], 1 - self.saturation, 1 + self.saturation)).clamp_(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Blur(Effect):
    """Gaussian blur with a window of one of the given sizes; sigma follows the window as 0.3 (radius - 1) + 0.8.

    Attributes:
        windows: odd window sizes in pixels, each as likely.
    """

    windows: tuple[int, ...] = (3, 5)

    def check(self) -> None:
        """Refuse windows without a middle."""
        self._require("windows", bool(self.windows) and all(w % 2 and w > 0 for w in self.windows), "be odd sizes")

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Blur all of the images."""
        widest = max(self.windows)
        kernels = torch.zeros(len(self.windows), widest)
        for row, window in enumerate(self.windows):
            radius = window // 2
            place = torch.arange(window) - radius
            weights = torch.exp(-0.5 * (place / (0.3 * (radius - 1) + 0.8)) ** 2)
            kernels[row, widest // 2 - radius : widest // 2 + radius + 1] = weights / weights.sum()
        return _convolve(images, kernels[self.draw(keys)])

    def draw(self, keys: UInts) -> Tensor:
        """(b,) keys of :meth:`apply` to (b,) int64, which of the windows."""
        return (_numbers(keys, 1)[:, 0] * len(self.windows)).long()


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Blur (b, C, H, W) by (b, k) kernels along both axes, reflecting at the edges: k shifted sums, no convolution."""
    radius = kernels.shape[1] // 2
    for dim in (2, 3):
        pad = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        padded = F.pad(images, pad, mode="reflect")
        n = images.shape[dim]
        total = torch.zeros_like(images)
        for step in range(kernels.shape[1]):
            total.addcmul_(padded.narrow(dim, step, n), kernels[:, step].view(-1, 1, 1, 1))
        images = total
    return images


@dataclass(frozen=True, kw_only=True)
class LowResolution(Effect):
    """Shrink an image and enlarge it again, as a face far from the camera is.

    Attributes:
        side: range of the small image's edge, as a share of the edge.
    """

    side: tuple[float, float] = (0.2, 1.0)

    def check(self) -> None:
        """Refuse sizes that do not shrink."""
        self._require("side", 0 < self.side[0] <= self.side[1] <= 1, "be a range within (0, 1]")

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Shrink and enlarge all of the images."""
        height, width = images.shape[2:]
        out = torch.empty_like(images)
        for i, small in enumerate(self.draw(keys, height, width)):
            tiny = F.interpolate(images[i : i + 1], small, mode="bilinear", antialias=True, align_corners=False)
            out[i] = F.interpolate(tiny, (height, width), mode="bilinear", align_corners=False)[0]
        return out

    def draw(self, keys: UInts, height: int, width: int) -> list[list[int]]:
        """(b,) keys of :meth:`apply` to [height, width] of each small image."""
        shares = self.side[0] + (self.side[1] - self.side[0]) * _numbers(keys, 1)[:, 0]
        return [[max(1, round(height * share)), max(1, round(width * share))] for share in shares.tolist()]


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
    u = _numbers(keys, 4)
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[:, 1])
    tall = (share / aspect).sqrt().mul(height).round().clamp(1, height)
    wide = (share * aspect).sqrt().mul(width).round().clamp(1, width)
    top, left = (u[:, 2] * (height - tall + 1)).floor(), (u[:, 3] * (width - wide + 1)).floor()
    row, column = torch.arange(height), torch.arange(width)
    rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
    columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    return (rows[:, :, None] & columns[:, None, :]).to(images.dtype).unsqueeze(1)


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
        u = _numbers(keys, 6 if slants else 4)
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


@dataclass(frozen=True, kw_only=True)
class RandAugment(Effect):
    """Some random operations of torchvision, each at the same strength (arXiv:1909.13719).

    The operations of one image run one after the other in Python: the only effect here that is not done by the batch.

    Attributes:
        operations: how many per image.
        magnitude: strength from 0 to 30.
    """

    operations: int = 2
    magnitude: float = 9.0

    def check(self) -> None:
        """Refuse numbers outside the scale."""
        self._require("operations", self.operations >= 1, "be at least 1")
        self._require("magnitude", 0 <= self.magnitude <= 30, "lie in [0, 30]")

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Change all of the images."""
        numbers = uniform(keys, 2 * self.operations)
        out = (images * 255.0).round_().to(torch.uint8)
        for i in range(len(images)):
            for n in range(self.operations):
                kind, sign = numbers[i, 2 * n : 2 * n + 2].tolist()
                out[i] = _operate(out[i], int(kind * len(_OPERATIONS)), self.magnitude / 30, 1 if sign < 0.5 else -1)
        return out.to(images.dtype).mul_(1.0 / 255.0)


_OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


def _operate(image: Tensor, number: int, strength: float, sign: int) -> Tensor:
    """One operation on a (C, H, W) uint8 image, at a strength from 0 to 1 in a direction of +1 or -1."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as T

    kind = _OPERATIONS[number]
    if kind in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"):
        amount = sign * strength
        angle = math.degrees(math.atan(0.3 * amount))
        out = T.affine(
            image,
            angle=30.0 * amount if kind == "rotate" else 0.0,
            translate=[
                round(0.45 * amount * image.shape[2]) if kind == "translate_x" else 0,
                round(0.45 * amount * image.shape[1]) if kind == "translate_y" else 0,
            ],
            scale=1.0,
            shear=[angle if kind == "shear_x" else 0.0, angle if kind == "shear_y" else 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
    elif kind in ("brightness", "color", "contrast", "sharpness"):
        factor = 1.0 + 0.9 * sign * strength
        adjust = {
            "brightness": T.adjust_brightness,
            "color": T.adjust_saturation,
            "contrast": T.adjust_contrast,
            "sharpness": T.adjust_sharpness,
        }[kind]
        out = adjust(image, factor)
    elif kind == "posterize":
        out = T.posterize(image, bits=8 - round(4 * strength))
    elif kind == "solarize":
        out = T.solarize(image, threshold=round(255 * (1 - strength)))
    elif kind == "autocontrast":
        out = T.autocontrast(image)
    elif kind == "equalize":
        out = T.equalize(image)
    else:
        out = image
    return torch.as_tensor(out)
