"""Samplers by choice of the user: what an epoch draws from the data, on however many ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from lightning_pfc.checked import checked
from lightning_pfc.data.orders import ClassOrder, MixedOrder, Order, ShuffledOrder
from lightning_pfc.data.source import IdentityData
from lightning_pfc.registry import name_and_arguments


class Sampler(Protocol):
    """Makes the order of a training set."""

    def order(self, data: IdentityData, *, seed: int, batch_size: int, world_size: int) -> Order:
        """The order in which ``world_size`` ranks draw ``data``, each taking ``batch_size`` images a step."""


@checked
@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Every image once an epoch.

    Attributes:
        repeats: augmented copies of an image that follow each other (repeated augmentation, arXiv:1901.09335); an epoch
            then sees ``1 / repeats`` of the images and stays as long as it was.
    """

    repeats: int = 1

    def order(self, data: IdentityData, *, seed: int, batch_size: int, world_size: int) -> Order:
        """See :class:`~lightning_pfc.data.orders.ShuffledOrder`."""
        return ShuffledOrder(data.num_images, seed, self.repeats)


@checked
@dataclass(frozen=True, kw_only=True)
class ClassBalanced:
    """Every class as often as every other.

    Attributes:
        length: draws in an epoch; by default about as many as there are images.
    """

    groups_by_label: ClassVar[bool] = True  # so that a picture has one
    length: int | None = None

    def order(self, data: IdentityData, *, seed: int, batch_size: int, world_size: int) -> Order:
        """See :class:`~lightning_pfc.data.orders.ClassOrder`."""
        return ClassOrder(np.asarray(data.labels), data.num_classes, seed=seed, length=self.length)


@checked
@dataclass(frozen=True, kw_only=True)
class IdentityGroups:
    """Global batches of P identities with K images each, P being the global batch over K; no identity twice in a batch.

    Attributes:
        images: K; a divisor of the batch size, so that no identity is divided between ranks.
        length: draws in an epoch; by default about as many as there are images.
    """

    groups_by_label: ClassVar[bool] = True  # so that a picture has one
    images: int = 4
    length: int | None = None

    def order(self, data: IdentityData, *, seed: int, batch_size: int, world_size: int) -> Order:
        """See :class:`~lightning_pfc.data.orders.ClassOrder`.

        Raises:
            ValueError: if the batch size is no multiple of ``images``, or the batch has more identities than there are.
        """
        if batch_size % self.images:
            raise ValueError(
                f"batch_size={batch_size} is no multiple of images={self.images} per identity; use "
                f"{max(1, batch_size // self.images) * self.images}."
            )
        identities = batch_size * world_size // self.images
        return ClassOrder(
            np.asarray(data.labels),
            data.num_classes,
            images=self.images,
            identities=identities,
            seed=seed,
            length=self.length,
        )


@checked
@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The data sets of a joint source in fixed shares, in every batch and on every rank.

    Attributes:
        shares: by name of the data set; by default in proportion to their images.
        length: draws in an epoch; by default as many as there are images.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    length: int | None = None

    def order(self, data: IdentityData, *, seed: int, batch_size: int, world_size: int) -> Order:
        """See :class:`~lightning_pfc.data.orders.MixedOrder`.

        Raises:
            ValueError: if ``shares`` names other data sets than there are.
        """
        names = [part.name for part in data.parts]
        if self.shares and set(self.shares) != set(names):
            raise ValueError(f"shares={dict(self.shares)} must name the data sets {names}.")
        return MixedOrder(
            [ShuffledOrder(part.num_images, seed + 7919 * number) for number, part in enumerate(data.parts)],
            [part.first_image for part in data.parts],
            [self.shares[name] for name in names] if self.shares else None,
            self.length,
        )


def make_sampler(choice: Sampler | str | Mapping[str, Any]) -> Sampler:
    """A sampler by name, by a mapping of ``name`` and its arguments (as a config has them), or as it is.

    Raises:
        ValueError: for a name that does not exist; the message lists those that do.
        TypeError: for arguments that the sampler does not take.
    """
    if not isinstance(choice, str | Mapping):
        return choice
    name, arguments = name_and_arguments(choice)
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r} is not one of {', '.join(sorted(SAMPLERS))}.")
    try:
        return SAMPLERS[name](**arguments)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(SAMPLERS[name]))
        raise TypeError(f"sampler {name!r} takes {known}, not {', '.join(arguments)}.") from error


SAMPLERS: dict[str, type[Shuffled] | type[ClassBalanced] | type[IdentityGroups] | type[Mixed]] = {
    "shuffled": Shuffled,
    "class_balanced": ClassBalanced,
    "identity_groups": IdentityGroups,
    "mixed": Mixed,
}
