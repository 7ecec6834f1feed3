"""Pairs of rows that are alike, of two tables that may lie on disk; a block of each in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lightning_pfc.data.unit_length import unit

Rows = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Block = Callable[[slice], Rows]

BLOCK = 4096  # rows; two blocks of 512 numbers and their products are 80 MB
MOST_PAIRS = 1 << 22


class Pairs(NamedTuple):
    """Pairs of positions, and how alike they are.

    Attributes:
        a: ``(n,)`` int64, positions in the first table.
        b: ``(n,)`` int64, in the second.
        score: ``(n,)`` float32.
    """

    a: Places
    b: Places
    score: Rows

    @classmethod
    def none(cls) -> Pairs:
        """No pair."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))

    @classmethod
    def of(cls, parts: Sequence[Pairs]) -> Pairs:
        """Those of one after the other; there is at least one part."""
        return cls(
            np.concatenate([part.a for part in parts]),
            np.concatenate([part.b for part in parts]),
            np.concatenate([part.score for part in parts]),
        )

    def at(self, places: Places) -> Pairs:
        """Some of them."""
        return Pairs(self.a[places], self.b[places], self.score[places])


class TooManyPairsError(ValueError):
    """More pairs than anybody can look at: the threshold is no threshold for these data."""


def pairs_above(
    a: Block, count_a: int, b: Block, count_b: int, threshold: float, *, what: str = "pairs", progress: bool = True
) -> Pairs:
    """Every pair of rows whose product is above a threshold, in the order of ``a``, then of ``b``.

    Args:
        a: gives the rows of a slice, ``(n, D)`` float32.
        count_a: how many there are.
        b: the rows of the other table.
        count_b: how many these are.
        threshold: of the product.
        what: for the progress bar and the error.
        progress: show the bar.

    Raises:
        TooManyPairsError: there are more than 4,194,304.
    """
    found, total = [Pairs.none()], 0
    with tqdm(total=count_a * count_b, unit=" pairs", unit_scale=True, desc=what, disable=not progress) as bar:
        for block in _blocks(a, count_a, b, count_b, threshold, bar):
            total += len(block.a)
            if total > MOST_PAIRS:
                raise TooManyPairsError(
                    f"more than {MOST_PAIRS:,} {what} are above {threshold:.4g}: too low a threshold for these "
                    "data, or most of their pictures are alike."
                )
            found.append(block)
    whole = Pairs.of(found)
    return whole.at(np.lexsort((whole.b, whole.a)))


def _blocks(a: Block, count_a: int, b: Block, count_b: int, threshold: float, bar: Any) -> Iterator[Pairs]:
    for start in range(0, count_a, BLOCK):
        left = a(slice(start, min(start + BLOCK, count_a)))
        for other in range(0, count_b, BLOCK):
            right = b(slice(other, min(other + BLOCK, count_b)))
            products = left @ right.T
            rows, columns = np.nonzero(products > threshold)
            yield Pairs(rows + start, columns + other, products[rows, columns])
            bar.update(products.size)


def unit_rows(rows: npt.NDArray[Any]) -> Block:
    """Rows of a table, each of length one."""
    return lambda part: unit(rows[part])


def signs(hashes: npt.NDArray[np.uint64]) -> Block:
    """Bits as numbers whose product is ``1 - 2 d / bits``, where two rows differ in ``d`` bits."""
    bits = hashes.shape[1] * 64
    octets = hashes.view(np.uint8)
    return lambda part: (np.unpackbits(octets[part], axis=1).astype(np.float32) * 2 - 1) / np.float32(bits**0.5)


def equal_keys(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64], *, what: str) -> Pairs:
    """Every pair of rows of ``(N, 2)`` and ``(M, 2)`` that are equal and not zero; the score is one.

    Raises:
        TooManyPairsError: there are more than 4,194,304.
    """
    kind = np.dtype([("high", np.uint64), ("low", np.uint64)])
    left, right = (np.ascontiguousarray(keys).view(kind).reshape(-1) for keys in (a, b))
    order = np.argsort(right, order=("high", "low"), kind="stable")
    ordered = right[order]
    first, last = (np.searchsorted(ordered, left, side) for side in ("left", "right"))
    counts = np.where(a.any(axis=1), last - first, 0)
    if int(counts.sum()) > MOST_PAIRS:
        raise TooManyPairsError(f"more than {MOST_PAIRS:,} {what} are equal: `pfc-data check` says which of a set are.")
    rows = np.repeat(np.arange(len(a)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = order[np.repeat(first, counts) + within]
    order = np.lexsort((columns, rows))
    return Pairs(rows[order], columns[order], np.ones(len(rows), np.float32))


def strongest(*found: tuple[str, Pairs]) -> tuple[Pairs, npt.NDArray[np.str_]]:
    """Pairs of several kinds, each pair once and with the first kind that has it; and the kind of each."""
    every = Pairs.of([pairs for _, pairs in found])
    kinds = np.repeat([kind for kind, _ in found], [len(pairs.a) for _, pairs in found])
    order = np.lexsort((np.arange(len(every.a)), every.b, every.a))
    a, b = every.a[order], every.b[order]
    first = np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])] if len(a) else np.zeros(0, bool)
    kept = order[first]
    return every.at(kept), kinds[kept]
