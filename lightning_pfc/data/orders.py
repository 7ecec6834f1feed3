"""Orders: which images one epoch draws, in which sequence. A function of (seed, epoch, place) on any rank."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_pfc.data.counter import Permutation, stream


class Draws(NamedTuple):
    """Images to load.

    Attributes:
        position: (b,) int64, positions in the training set.
        repeat: (b,) int64, how often an epoch drew the same image before; part of what keys its augmentation.
    """

    position: NDArray[np.int64]
    repeat: NDArray[np.int64]


class Order(Protocol):
    """The sequence of an epoch, the same on every rank; a rank asks for the stretches that it needs."""

    @property
    def length(self) -> int:
        """Draws in an epoch."""

    def draws(self, epoch: int, start: int, stop: int) -> Draws:
        """The draws at places ``start`` to ``stop`` of an epoch."""


class ShuffledOrder:
    """Every image once an epoch, in an order that depends on (seed, epoch).

    Args:
        num_images: images in the training set.
        seed: of the shuffling.
        repeats: augmented copies of every image that follow each other (repeated augmentation, arXiv:1901.09335); an
            epoch then sees ``num_images / repeats`` of the images, so that it stays as long as it was.
    """

    def __init__(self, num_images: int, seed: int = 0, repeats: int = 1) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images}: there is nothing to train on.")
        if not 1 <= repeats <= num_images:
            raise ValueError(f"repeats={repeats} must lie between 1 and the number of images, {num_images}.")
        self.num_images = num_images
        self.seed = seed
        self.repeats = repeats
        self._permutation: tuple[int, Permutation] | None = None

    @property
    def length(self) -> int:
        """Draws in an epoch: a whole number of repeats."""
        return self.num_images - self.num_images % self.repeats

    def draws(self, epoch: int, start: int, stop: int) -> Draws:
        """The draws at places ``start`` to ``stop`` of an epoch."""
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = (epoch, Permutation(self.num_images, int(stream(self.seed, epoch)[0])))
        places = np.arange(start, stop)
        return Draws(self._permutation[1](places // self.repeats), places % self.repeats)
