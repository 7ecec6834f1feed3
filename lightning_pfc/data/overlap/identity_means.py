"""Identities by their embeddings: the mean cosine of all pairs of pictures of two of them, without making the pairs.

The product of the means of two sets of unit vectors is the mean of all products between them. So a score here is of the
same kind as the cosine of two pictures, and a threshold that was calibrated on pairs of pictures means what it says;
with several pictures of each identity it errs less often than it promises. Centers brought to length one, which are
often compared instead, have larger cosines than pairs of pictures, and need a threshold of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.overlap.cosines import Block
from lightning_pfc.data.unit_length import unit

_ROWS = 1 << 14
_SAMPLED = 2000  # identities: two million pairs of them


@dataclass(frozen=True)
class Embedded:
    """A data set's embeddings.

    Attributes:
        rows: ``(n, D)``, perhaps on disk.
        images: ``(n,)`` int64, the picture of each row, in rising order; those that gave none are not among them.
        labels: ``(n,)`` int64, its identity.
        num_classes: how many identities there are.
    """

    rows: npt.NDArray[np.float32]
    images: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    num_classes: int


@dataclass(frozen=True)
class Consequence:
    """What a threshold does, measured on identities of one set among themselves.

    Attributes:
        pairs: pairs of different identities that were compared.
        above: how many of them are above the threshold: by chance, or because the set has an identity twice.
        identities: identities of two pictures or more, whose one half was compared with the other.
        found: how many of them are above it.
    """

    pairs: int
    above: int
    identities: int
    found: int

    def __add__(self, other: Consequence) -> Consequence:
        return Consequence(*(one + two for one, two in zip(self._numbers(), other._numbers(), strict=True)))

    def _numbers(self) -> tuple[int, int, int, int]:
        return self.pairs, self.above, self.identities, self.found


def identity_means(data: Embedded, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """``(C, D)`` the mean of the unit embeddings of each identity; zeros where it has none.

    Args:
        data: the set.
        out: ``(C, D)`` zeros to put them into, perhaps on disk.
    """
    sums = np.zeros((data.num_classes, data.rows.shape[1]), np.float32) if out is None else out
    for start in range(0, len(data.labels), _ROWS):
        part = slice(start, start + _ROWS)
        np.add.at(sums, data.labels[part], unit(data.rows[part]))
    counts = np.bincount(data.labels, minlength=data.num_classes).astype(np.float32)
    for start in range(0, len(sums), _ROWS):
        part = slice(start, start + _ROWS)
        sums[part] /= np.maximum(counts[part], 1)[:, None]
    return sums


def as_block(rows: npt.NDArray[np.float32]) -> Block:
    """Rows as they are, a slice at a time."""
    return lambda part: np.asarray(rows[part])


def consequence(data: Embedded, threshold: float) -> Consequence:
    """What a threshold does among at most 2,000 identities of a set, evenly spread.

    Args:
        data: the set.
        threshold: of the mean cosine of two identities' pictures.
    """
    present = np.flatnonzero(np.bincount(data.labels, minlength=data.num_classes))
    chosen = present[np.unique(np.linspace(0, len(present) - 1, min(_SAMPLED, len(present))).astype(np.int64))]
    places = np.flatnonzero(np.isin(data.labels, chosen))
    labels = np.searchsorted(chosen, data.labels[places])
    halves = [_half(data, places, labels, len(chosen), number) for number in (0, 1)]
    counts = [count for _, count in halves]
    both = (counts[0] > 0) & (counts[1] > 0)
    own = np.einsum("cd,cd->c", *(sums / np.maximum(count, 1)[:, None] for sums, count in halves))
    means = (halves[0][0] + halves[1][0]) / np.maximum(counts[0] + counts[1], 1)[:, None]
    others = means @ means.T
    above = int((others[np.triu_indices(len(chosen), 1)] > threshold).sum())
    return Consequence(len(chosen) * (len(chosen) - 1) // 2, above, int(both.sum()), int((own[both] > threshold).sum()))


def _half(
    data: Embedded, places: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], count: int, number: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Sum of the unit embeddings of every second picture of each identity, and how many these are."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(count))
    turn = np.empty(len(labels), np.int64)
    turn[order] = np.arange(len(labels)) - starts[labels[order]]
    mine = np.flatnonzero(turn % 2 == number)
    sums = np.zeros((count, data.rows.shape[1]), np.float32)
    for start in range(0, len(mine), _ROWS):
        part = mine[start : start + _ROWS]
        np.add.at(sums, labels[part], unit(data.rows[places[part]]))
    return sums, np.bincount(labels[mine], minlength=count)
