"""Effects that take fine detail away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.data.counter import UInts
from lightning_pfc.data.effects.base import Effect, numbers


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
        return (numbers(keys, 1)[:, 0] * len(self.windows)).long()


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
        shares = self.side[0] + (self.side[1] - self.side[0]) * numbers(keys, 1)[:, 0]
        return [[max(1, round(height * share)), max(1, round(width * share))] for share in shares.tolist()]
