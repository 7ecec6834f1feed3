"""Verification: pictures, and pairs of them that show the same identity or two different ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.data.counter import Permutation, stream, uniform
from lightning_pfc.data.images import ImageTable

FOLDS = 10
LEAST = 4  # identities that can be verified: two folds of two


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures by their position in a data set.

    Attributes:
        first, second: (P,) int64.
        same: (P,) bool.
        fold: (P,) int64, the cross-validation fold of a pair, or -1: used for rates, not for folds. Within the folds
            there are as many same as different pairs, and no identity is in two folds.
    """

    first: Tensor
    second: Tensor
    same: Tensor
    fold: Tensor

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class VerificationSet:
    """What a verification protocol needs: pictures without augmentation, and pairs of them.

    Attributes:
        images: the distinct pictures of the pairs; item i is one (C, H, W) uint8 image.
        pairs: the pairs, as positions in ``images``.
        identity: (N,) int64, an id per picture, for reports; ids of training classes are never meant.
        description: one line for tables and logs.
        names: of the identities by their id, where there are names.
    """

    images: ImageTable
    pairs: Pairs
    identity: Tensor
    description: str = ""
    names: Sequence[str] = ()


def make_pairs(
    identity: NDArray[np.int64],
    group: NDArray[np.int64],
    *,
    seed: int,
    impostors: int,
    genuine_per_identity: int = 4,
    across: tuple[frozenset[int], frozenset[int]] | None = None,
) -> Pairs:
    """Draw verification pairs: same identity in different groups (designs, cameras), and different identities.

    There are ten folds, of fewer than twenty identities (or ten with genuine pairs) as many as can have a pair of each
    kind.

    Args:
        identity: (N,) identity of each picture.
        group: (N,) group of each picture; genuine pairs never stay within one.
        seed: fixes the pairs; the result depends on nothing else but the arguments.
        impostors: different-identity pairs to draw for the rates, besides those in the folds.
        genuine_per_identity: most genuine pairs that one identity may give.
        across: if given, one picture of every pair (same or different) is of a group in the first set and the other of
            one in the second; else any two groups will do, and impostors may share one.

    Raises:
        ValueError: if no identity has pictures in two groups, or there is only one identity.
    """
    order = np.lexsort((np.arange(len(identity)), identity))
    names, starts = np.unique(identity[order], return_index=True)
    if len(names) < LEAST:
        raise ValueError(f"{len(names)} identities: verification needs at least {LEAST}, for two folds.")
    members = np.split(order, starts[1:])
    left, right = _genuine(members, group, seed, genuine_per_identity, across)
    if not len(left):
        raise ValueError("no identity has pictures in two groups, so there is no genuine pair to verify.")
    paired = np.unique(np.searchsorted(names, identity[left]))
    if len(paired) < 2:
        raise ValueError("only one identity has pictures in two groups: verification needs two, for two folds.")
    folds = min(FOLDS, len(names) // 2, len(paired))
    fold_of = _fold_of_identity(len(names), paired, folds, seed)
    fold = fold_of[np.searchsorted(names, identity)]
    genuine_fold = fold[left]
    sides = _sides(group, across)
    within = [
        _impostors(identity, tuple(s[fold[s] == f] for s in sides), int((genuine_fold == f).sum()), seed + 1 + f)
        for f in range(folds)
    ]
    taken = np.concatenate([np.sort(np.stack([a, b], axis=1)) for a, b in within])
    rates = _impostors(identity, sides, impostors, seed + 1 + FOLDS, taken)
    first = np.concatenate([left, *(w[0] for w in within), rates[0]])
    second = np.concatenate([right, *(w[1] for w in within), rates[1]])
    fold_of_pair = np.concatenate(
        [genuine_fold, *(np.full(len(w[0]), f) for f, w in enumerate(within)), np.full(len(rates[0]), -1)]
    )
    same = np.zeros(len(first), dtype=bool)
    same[: len(left)] = True
    return Pairs(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (first, second, same, fold_of_pair)))


def _fold_of_identity(count: int, paired: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """(count,) fold of each identity, the same number in each; every fold has one of those with genuine pairs."""
    order = Permutation(count, seed)(np.arange(count))
    fold_of = np.empty(count, dtype=np.int64)
    fold_of[order] = np.arange(count) * folds // count
    if len(np.unique(fold_of[paired])) < folds:  # few have: these are dealt out first
        has_pairs = np.isin(order, paired)
        dealt = np.concatenate([order[has_pairs], order[~has_pairs]])
        fold_of[dealt] = np.arange(count) % folds
    return fold_of


def _sides(
    group: NDArray[np.int64], across: tuple[frozenset[int], frozenset[int]] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if across is None:
        everyone = np.arange(len(group))
        return everyone, everyone
    return np.flatnonzero(np.isin(group, list(across[0]))), np.flatnonzero(np.isin(group, list(across[1])))


def _genuine(
    members: list[NDArray[np.int64]],
    group: NDArray[np.int64],
    seed: int,
    limit: int,
    across: tuple[frozenset[int], frozenset[int]] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    one = two = np.ones(len(group), dtype=bool)
    if across is not None:
        one, two = np.isin(group, list(across[0])), np.isin(group, list(across[1]))
    left: list[NDArray[np.int64]] = []
    right: list[NDArray[np.int64]] = []
    for number, rows in enumerate(members):
        a, b = (rows[half] for half in np.triu_indices(len(rows), 1))
        keep = (group[a] != group[b]) & ((one[a] & two[b]) | (one[b] & two[a]))
        a, b = a[keep], b[keep]
        if len(a) > limit:
            chosen = np.sort(Permutation(len(a), seed * 1_000_003 + number)(np.arange(limit)))
            a, b = a[chosen], b[chosen]
        left.append(a)
        right.append(b)
    return np.concatenate(left), np.concatenate(right)


def _impostors(
    identity: NDArray[np.int64],
    sides: tuple[NDArray[np.int64], ...],
    count: int,
    seed: int,
    taken: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``count`` distinct pairs of different identities, one picture from each side, none of them taken (T, 2)."""
    one, two = sides
    skip = 0 if taken is None else len(taken)
    found = np.zeros((0, 2), dtype=np.int64) if taken is None else taken
    for attempt in range(20):
        missing = count + skip - len(found)
        if missing <= 0:
            break
        u = uniform(stream(seed, attempt, np.arange(2 * missing + 64)), 2).astype(np.float64)
        pair = np.stack([one[(u[:, 0] * len(one)).astype(np.int64)], two[(u[:, 1] * len(two)).astype(np.int64)]], 1)
        pair = np.sort(pair[identity[pair[:, 0]] != identity[pair[:, 1]]], axis=1)
        found = np.concatenate([found, pair])
        _, first = np.unique(found @ np.asarray([len(identity), 1]), return_index=True)
        found = found[np.sort(first)]
    return found[skip : skip + count, 0], found[skip : skip + count, 1]
