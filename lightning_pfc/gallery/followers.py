"""Indexes that follow a store: of every picture, or of every identity's mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lightning_pfc.gallery.index import ExactIndex
from lightning_pfc.gallery.records import Match, VectorBatch, Vectors
from lightning_pfc.gallery.store import Position, SearchingStore, Store

Numbers = npt.NDArray[np.int64]
Scores = dict[int, tuple[float, int]]
"""Score and best picture of identities by their numbers."""

_MEANS_AT_ONCE = 1000


class Searcher(Protocol):
    """What finds the nearest identities."""

    def catch_up(self) -> None:
        """Take over what was changed since the last call, in this process or another."""

    def search(self, unit: Vectors, k: int) -> list[Match]:
        """The ``k`` best identities for a unit vector (D,)."""


class StoreSearch:
    """Leaves the search to a store that can do it."""

    def __init__(self, store: SearchingStore) -> None:
        self._store = store

    def catch_up(self) -> None:
        """Nothing to take over, but a model that may have changed."""
        self._store.position()

    def search(self, unit: Vectors, k: int) -> list[Match]:
        """See :class:`Searcher`."""
        return self._store.nearest(unit, k)


def follower(store: Store, precision: str) -> Searcher:
    """The index that a store's pooling asks for, still empty; none for a store that searches by itself."""
    if isinstance(store, SearchingStore):
        return StoreSearch(store)
    kind = FollowMeans if store.pooling == "mean" else FollowPictures
    return kind(store, precision)


class Follower(ABC):
    """An index and how far it has followed its store."""

    def __init__(self, store: Store, precision: str) -> None:
        self.store, self._precision = store, precision
        self._begin()

    def _begin(self) -> None:
        self.index = ExactIndex(self.store.model.width, self._precision)
        self._position = Position()
        self._pictures = np.empty(0, dtype=np.int64)  # ascending
        self._identities = np.empty(0, dtype=np.int64)  # of these

    def catch_up(self) -> None:
        """Take over what was added and removed since the last call, in this process or another."""
        now = self.store.position()
        if now == self._position:
            return
        if now.generation != self._position.generation:
            self._begin()
        gone = self.store.removed(self._position)
        pictures, identities = [self._pictures], [self._identities]
        for batch in self.store.vectors(self._position):
            pictures.append(batch.pictures)
            identities.append(batch.identities)
            self._add(batch)
        self._pictures, self._identities = np.concatenate(pictures), np.concatenate(identities)
        keep = ~np.isin(self._pictures, gone)
        touched = np.unique(np.concatenate([self._identities[~keep], *identities[1:]]))
        self._pictures, self._identities = self._pictures[keep], self._identities[keep]
        self._settle(gone, touched)
        newest = int(self._pictures[-1]) if len(self._pictures) else 0
        self._position = Position(max(newest, now.picture), now.removal, now.generation)

    def search(self, unit: Vectors, k: int) -> list[Match]:
        """The ``k`` best identities for a unit vector (D,)."""
        wanted = 2 * k + 16
        while True:
            found = self.index.search(unit, wanted)
            scored = self._rescore(unit, found.keys)
            whole = len(found.keys) == len(self.index)
            # an entry that was not looked at scores at most the last one's, and the rounding of both
            limit = -np.inf if whole else float(found.scores[-1]) + 2 * self.index.rounding
            best = sorted(scored.items(), key=lambda item: (-item[1][0], item[0]))[:k]
            if whole or (len(best) == k and best[-1][1][0] >= limit):
                break
            wanted *= 4
        names = self.store.names_of(np.array([identity for identity, _ in best], dtype=np.int64))
        return [Match(names[i], score, picture) for i, (score, picture) in best if i in names]

    @abstractmethod
    def _add(self, batch: VectorBatch) -> None:
        """Pictures that came."""

    @abstractmethod
    def _settle(self, gone: Numbers, touched: Numbers) -> None:
        """All that came is in the tables, and pictures that went are not; ``touched`` are the identities of either."""

    @abstractmethod
    def _rescore(self, unit: Vectors, keys: Numbers) -> Scores:
        """Score in float32 and best picture of each identity among the entries ``keys``."""


class FollowPictures(Follower):
    """Every picture is an entry; an identity scores what its best picture does."""

    def _add(self, batch: VectorBatch) -> None:
        self.index.add(batch.pictures, batch.vectors)

    def _settle(self, gone: Numbers, touched: Numbers) -> None:
        self.index.remove(gone)

    def _rescore(self, unit: Vectors, keys: Numbers) -> Scores:
        scores = self.store.vectors_of(keys) @ unit
        identities = self._identities[np.searchsorted(self._pictures, keys)]
        found: Scores = {}
        for picture, identity, score in zip(keys.tolist(), identities.tolist(), scores.tolist(), strict=True):
            if score > found.get(identity, (-np.inf, 0))[0]:  # not so for NaN: the picture is gone since
                found[identity] = (score, picture)
        return found


class FollowMeans(Follower):
    """Every identity is an entry, the mean of its pictures' unit vectors; it scores the mean of their cosines."""

    def _begin(self) -> None:
        super()._begin()
        self._by_identity = np.empty(0, dtype=np.int64)  # places in the tables, ordered by identity
        self._ordered = np.empty(0, dtype=np.int64)  # the identities in that order

    def _add(self, batch: VectorBatch) -> None:
        """Nothing: a mean needs all pictures of its identity, which may come in several batches."""

    def _settle(self, gone: Numbers, touched: Numbers) -> None:
        self._by_identity = np.argsort(self._identities, kind="stable")
        self._ordered = self._identities[self._by_identity]
        self.index.remove(touched)
        for start in range(0, len(touched), _MEANS_AT_ONCE):
            rows = [(i, self._mean(i)) for i in touched[start : start + _MEANS_AT_ONCE].tolist()]
            known = [(i, mean) for i, mean in rows if mean is not None]
            if known:
                self.index.add(np.array([i for i, _ in known]), np.stack([mean for _, mean in known]))

    def _pictures_of(self, identity: int) -> Numbers:
        low, high = np.searchsorted(self._ordered, [identity, identity + 1])
        return self._pictures[self._by_identity[low:high]]

    def _vectors(self, identity: int) -> tuple[Numbers, Vectors]:
        pictures = self._pictures_of(identity)
        vectors = self.store.vectors_of(pictures)
        alive = ~np.isnan(vectors).any(axis=1)
        return pictures[alive], vectors[alive]

    def _mean(self, identity: int) -> Vectors | None:
        _, vectors = self._vectors(identity)
        return vectors.mean(axis=0) if len(vectors) else None

    def _rescore(self, unit: Vectors, keys: Numbers) -> Scores:
        found: Scores = {}
        for identity in keys.tolist():
            pictures, vectors = self._vectors(identity)
            if len(pictures):
                scores = vectors @ unit
                found[identity] = (float(scores.mean()), int(pictures[scores.argmax()]))
        return found
