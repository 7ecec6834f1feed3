"""What a single effect on pictures is, and the random numbers that it draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.data.counter import UInts, stream, uniform


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


def numbers(keys: UInts, count: int) -> Tensor:
    """(b, count) uniform numbers in [0, 1)."""
    return torch.from_numpy(uniform(keys, count))


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers stretched to a range, ready to be broadcast over (b, C, H, W)."""
    return (low + (high - low) * u).view(-1, 1, 1, 1)
