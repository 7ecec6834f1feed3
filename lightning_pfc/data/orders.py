"""Orders: which images one epoch draws, in which sequence. A function of (seed, epoch, place) on any rank."""

from __future__ import annotations

from collections.abc import Sequence
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


class ClassOrder:
    """Classes in turn, some images of each: class-balanced sampling, or batches of P identities with K images each.

    A round shows every class once, in an order that depends on (seed, epoch, round), with ``images`` pictures that
    follow each other; from round to round a class shows its next ones, so all of them are used equally often. A class
    with fewer pictures repeats them, augmented anew.

    Args:
        labels: (N,) int64 class of each training image.
        num_classes: number of classes; each needs an image.
        images: K, pictures of a class that follow each other.
        identities: P, classes in a global batch; no class is in a batch twice. Each round leaves out the classes that
            do not fill a batch, other ones every time. 1 makes no such promise and leaves none out.
        seed: of the order.
        length: draws in an epoch, rounded to whole rounds; by default about as many as there are images.

    Raises:
        ValueError: for a class without an image, or more identities than classes.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        num_classes: int,
        *,
        images: int = 1,
        identities: int = 1,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        labels = np.asarray(labels, dtype=np.int64)
        if images < 1 or identities < 1:
            raise ValueError(f"images={images} and identities={identities} must be at least 1.")
        if identities > num_classes:
            raise ValueError(f"identities={identities} in a batch is more than the {num_classes} classes there are.")
        self.counts = np.bincount(labels, minlength=num_classes)
        if len(self.counts) > num_classes or not self.counts.all():
            empty = int(np.flatnonzero(self.counts[:num_classes] == 0)[0]) if not self.counts.all() else -1
            raise ValueError(
                f"labels must cover every class in [0, {num_classes}): "
                + (
                    f"class {empty} has no image, and class_balanced and identity_groups draw from every class. Take "
                    "data.sampler=null, or leave out data.classes_of, which keeps classes of identities that are gone."
                    if empty >= 0
                    else f"label {labels.max()} is outside."
                )
            )
        self.members = np.argsort(labels, kind="stable")
        self.starts = np.cumsum(self.counts) - self.counts
        self.num_classes = num_classes
        self.images = images
        self.seed = seed
        self.per_round = num_classes - num_classes % identities
        wanted = len(labels) if length is None else length
        self.rounds = max(1, round(wanted / (self.per_round * images)))
        self._permutations: dict[tuple[int, int], Permutation] = {}

    @property
    def length(self) -> int:
        """Draws in an epoch."""
        return self.rounds * self.per_round * self.images

    def draws(self, epoch: int, start: int, stop: int) -> Draws:
        """The draws at places ``start`` to ``stop`` of an epoch."""
        places = np.arange(start, stop)
        groups, within = places // self.images, places % self.images
        rounds, slots = groups // self.per_round, groups % self.per_round
        classes = np.empty_like(slots)
        for number in np.unique(rounds).tolist():
            here = rounds == number
            classes[here] = self._permutation(epoch, number)(slots[here])
        counts = self.counts[classes]
        before = (
            rounds * self.images + within
        )  # pictures of this class that the epoch has shown, were it in every round
        first = (stream(self.seed, 1, classes) % counts.astype(np.uint64)).astype(np.int64)
        shown = epoch * self.rounds * self.images + before
        return Draws(self.members[self.starts[classes] + (first + shown) % counts], before // counts)

    def _permutation(self, epoch: int, number: int) -> Permutation:
        if (epoch, number) not in self._permutations:
            if len(self._permutations) > 8:
                self._permutations.clear()
            key = int(stream(self.seed, 2, epoch, number)[0])
            self._permutations[epoch, number] = Permutation(self.num_classes, key)
        return self._permutations[epoch, number]


class MixedOrder:
    """Several data sets in fixed shares: every stretch of the order, so every rank's part of a batch, holds them so.

    Each data set goes through its own epochs at its own speed, whatever the length of an epoch here.

    Args:
        orders: of the data sets; their positions are counted from ``offsets``.
        offsets: position of each data set's first image in the joint training set.
        shares: of each data set in every batch, to 1/4096; by default those of their lengths. Scaled to sum to 1.
        length: draws in an epoch; by default the sum of the orders' lengths.

    Raises:
        ValueError: if the arguments are not of one length, or a share is not above 0.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        offsets: Sequence[int],
        shares: Sequence[float] | None = None,
        length: int | None = None,
    ) -> None:
        wanted = [float(order.length) for order in orders] if shares is None else [float(share) for share in shares]
        if not len(orders) == len(offsets) == len(wanted) >= 1:
            raise ValueError(f"{len(orders)} orders, {len(offsets)} offsets and {len(wanted)} shares must be as many.")
        if not all(share > 0 for share in wanted):
            raise ValueError(f"shares={wanted} must all be above 0.")
        self.orders = list(orders)
        self.offsets = list(offsets)
        self._length = sum(order.length for order in orders) if length is None else length
        self._pattern = _interleave(np.asarray(wanted) / sum(wanted))
        self._counts = np.bincount(self._pattern, minlength=len(orders))
        turns = np.arange(len(orders))[:, None] == self._pattern
        self._before = (np.cumsum(turns, axis=1) - turns)[self._pattern, np.arange(len(self._pattern))]

    @property
    def length(self) -> int:
        """Draws in an epoch."""
        return self._length

    def draws(self, epoch: int, start: int, stop: int) -> Draws:
        """The draws at places ``start`` to ``stop`` of an epoch."""
        places = epoch * self._length + np.arange(start, stop)
        chosen, rank = self._turns(places)
        position, repeat = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
        for number, (order, offset) in enumerate(zip(self.orders, self.offsets, strict=True)):
            mine = np.flatnonzero(chosen == number)
            own_epochs, own_places = np.divmod(rank[mine], order.length)
            for own_epoch in np.unique(own_epochs).tolist():
                here = mine[own_epochs == own_epoch]
                asked = own_places[own_epochs == own_epoch]
                drawn = order.draws(own_epoch, int(asked[0]), int(asked[-1]) + 1)
                position[here] = drawn.position + offset
                # The data set may have begun anew within this epoch: its own epoch is part of what keys an image.
                repeat[here] = drawn.repeat + (own_epoch << 20)
        return Draws(position, repeat)

    def _turns(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Whose turn it is at each place, and how many turns that data set had before."""
        period, place = np.divmod(places, len(self._pattern))
        chosen = self._pattern[place]
        return chosen, period * self._counts[chosen] + self._before[place]


_PERIOD = 4096


def _interleave(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """A period of turns in which every stretch holds the shares as nearly as can be: next is who is furthest behind."""
    pattern = np.empty(_PERIOD, dtype=np.int64)
    given = np.zeros(len(shares))
    for place in range(_PERIOD):
        pattern[place] = int(np.argmax(shares * (place + 1) - given))
        given[pattern[place]] += 1
    if not given.all():
        raise ValueError(f"shares={shares.tolist()}: a share below 1/{_PERIOD} would never have its turn.")
    return pattern
