"""Impostor trials by identity: how many there are, and how many each identity has a part in."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Trials(Protocol):
    """All impostor trials of a set; each has two identities, numbered from 0.

    Attributes:
        identities: How many there are.
        count: How many trials.
    """

    identities: int
    count: int

    def touching(self) -> Floats:
        """Trials that each identity has a part in, (identities,)."""

    def weighted(self, weight: Floats) -> float:
        """The number of trials when identity i is there ``weight[i]`` times: a sum over trials of both weights."""

    def squares(self) -> float:
        """Sum over pairs of identities of the square of their number of trials."""

    def between(self, first: Ints, second: Ints) -> Floats:
        """Trials between pairs of identities, (p,)."""


class AllPairs:
    """Every two pictures of different identities.

    Args:
        pictures: Of each identity, (identities,).
    """

    def __init__(self, pictures: Ints) -> None:
        self._pictures = pictures.astype(np.float64)
        self.identities = len(pictures)
        self.count = round(self.weighted(np.ones(len(pictures))))

    def touching(self) -> Floats:
        """See :class:`Trials`."""
        found: Floats = self._pictures * (self._pictures.sum() - self._pictures)
        return found

    def weighted(self, weight: Floats) -> float:
        """See :class:`Trials`; copies of one identity are no impostors of each other."""
        m = weight * self._pictures
        return float((m.sum() ** 2 - (m * m).sum()) / 2)

    def squares(self) -> float:
        """See :class:`Trials`."""
        square = self._pictures**2
        return float((square.sum() ** 2 - (square * square).sum()) / 2)

    def between(self, first: Ints, second: Ints) -> Floats:
        """See :class:`Trials`."""
        found: Floats = self._pictures[first] * self._pictures[second]
        return found


class ListedPairs:
    """Impostor pairs of a list.

    Args:
        first: Identity of each pair's first picture, (p,).
        second: Likewise.
        identities: How many there are.
    """

    def __init__(self, first: Ints, second: Ints, identities: int) -> None:
        self.identities, self.count = identities, len(first)
        self._first, self._second = first, second
        keys, counts = np.unique(pair_keys(first, second, identities), return_counts=True)
        self._keys, self._counts = keys, counts.astype(np.float64)

    def touching(self) -> Floats:
        """See :class:`Trials`."""
        both = np.concatenate([self._first, self._second])
        return np.bincount(both, minlength=self.identities).astype(np.float64)

    def weighted(self, weight: Floats) -> float:
        """See :class:`Trials`."""
        return float((weight[self._first] * weight[self._second]).sum())

    def squares(self) -> float:
        """See :class:`Trials`."""
        return float((self._counts**2).sum())

    def between(self, first: Ints, second: Ints) -> Floats:
        """See :class:`Trials`."""
        found: Floats = self._counts[np.searchsorted(self._keys, pair_keys(first, second, self.identities))]
        return found


class Searches:
    """Every picture against one enrolled picture of every other identity.

    Args:
        pictures: Of each identity, (identities,): the searches that it makes.
    """

    def __init__(self, pictures: Ints) -> None:
        self._pictures = pictures.astype(np.float64)
        self.identities = len(pictures)
        self.count = int(pictures.sum()) * (len(pictures) - 1)

    def touching(self) -> Floats:
        """See :class:`Trials`."""
        found: Floats = self._pictures * (self.identities - 2) + self._pictures.sum()
        return found

    def weighted(self, weight: Floats) -> float:
        """See :class:`Trials`."""
        probes = weight * self._pictures
        return float(probes.sum() * weight.sum() - (probes * weight).sum())

    def squares(self) -> float:
        """See :class:`Trials`."""
        n, total = self._pictures, self._pictures.sum()
        square = (n * n).sum()
        return float((self.identities - 2) * square + total * total)

    def between(self, first: Ints, second: Ints) -> Floats:
        """See :class:`Trials`."""
        found: Floats = self._pictures[first] + self._pictures[second]
        return found


def pair_keys(first: Ints, second: Ints, identities: int) -> Ints:
    """One number for each unordered pair of identities, (p,)."""
    keys: Ints = np.minimum(first, second) * identities + np.maximum(first, second)
    return keys
