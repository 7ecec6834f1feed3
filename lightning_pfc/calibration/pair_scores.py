"""The scores of a set's pairs: who the false accepts of a threshold are, and how far their rate spreads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.calibration.material import Material
from lightning_pfc.calibration.pairs_above import pairs_above
from lightning_pfc.calibration.spread import Accepts, Draws, Variance, of_pairs, replicates, scaled, variance
from lightning_pfc.calibration.trials import AllPairs, Floats, Ints, ListedPairs
from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.intervals import proportion_interval, ratio_interval
from lightning_pfc.metrics.functional import tar_at_far


class PairScores:
    """Pairs of a set, scored: all of them, or those of a list."""

    impostors: int
    identities: int | None

    @staticmethod
    def of(material: Material) -> PairScores:
        """Those of all pairs of a set of embeddings, or of the listed ones of a set of scores."""
        return _All(material) if material.embeddings is not None else _Listed(material)

    def at(self, far: float) -> tuple[float, float, int]:
        """Threshold, true accept rate and number of false accepts for a rate."""
        raise NotImplementedError

    def accepted(self, value: float) -> tuple[int, float]:
        """False accepts and true accept rate of a threshold."""
        raise NotImplementedError

    def accept_interval(self, value: float, draws: Draws) -> tuple[float, float]:
        """Interval of the true accept rate, at a threshold that is held."""
        raise NotImplementedError

    def accepts(self, value: float) -> Accepts | None:
        """Who the false accepts of a threshold are; None where nobody has a name."""
        raise NotImplementedError

    def variance(self, value: float) -> Variance:
        """Of the logarithm of the false accept rate."""
        found = self.accepts(value)
        if found is None:
            count = max(self.accepted(value)[0], 1)
            return Variance(0.0, 1.0 / count, 1, self.impostors, float(count))
        return variance(found)

    def deviations(self, value: float, draws: Draws, size_of: PairScores | None, salt: int = 0) -> Floats:
        """Draws of the logarithm of the false accept rate less that of this set, for a set of another's size."""
        rng = np.random.default_rng([draws.seed, salt])
        found = self.accepts(value)
        other = size_of or self
        spread = self.variance(value)
        if found is None:
            raw = of_pairs(self.accepted(value)[0], self.impostors, draws.replicates, rng)
        else:
            raw = replicates(found, draws.replicates, rng)
        wanted = spread.of_set(other.identities or spread.identity_count, other.impostors)
        return scaled(raw, wanted * spread.widening(draws.level) ** 2)


class _All(PairScores):
    def __init__(self, material: Material) -> None:
        assert material.embeddings is not None
        assert material.labels is not None
        self._rows, self._labels = material.embeddings, material.labels
        self._number, counts = material.numbered()
        self._trials = AllPairs(counts)
        self.impostors, self.identities = self._trials.count, len(counts)
        self._genuine = torch.from_numpy(counts * (counts - 1) // 2)
        self._known: dict[float, Accepts] = {}

    def at(self, far: float) -> tuple[float, float, int]:
        [point] = all_pairs_tar(self._rows, self._labels, [far]).points
        return point.threshold, point.tar, point.false_accepts

    def accepted(self, value: float) -> tuple[int, float]:
        hits, _ = self._genuine_hits(value)
        return len(self.accepts(value).first), float(hits.sum() / self._genuine.sum())

    def accept_interval(self, value: float, draws: Draws) -> tuple[float, float]:
        hits, trials = self._genuine_hits(value)
        found = ratio_interval(hits, trials, level=draws.level)
        return found.low, found.high

    def accepts(self, value: float) -> Accepts:
        if value not in self._known:
            first, second = pairs_above(self._rows, value)
            a, b = self._number[first.numpy()], self._number[second.numpy()]
            other = a != b
            self._known[value] = Accepts(a[other], b[other], np.ones(int(other.sum())), self._trials)
        return self._known[value]

    def _genuine_hits(self, value: float) -> tuple[Tensor, Tensor]:
        first, _ = pairs_above(self._rows, value, self._labels)
        owner = torch.from_numpy(self._number)[first]
        return torch.bincount(owner, minlength=len(self._genuine)), self._genuine


class _Listed(PairScores):
    def __init__(self, material: Material) -> None:
        assert material.scores is not None
        assert material.same is not None
        self._scores, self._same = material.scores.double(), material.same
        self.impostors = int((~self._same).sum())
        if not self.impostors or self.impostors == len(self._same):
            raise ValueError(f"{material.name!r} must hold genuine and impostor pairs, to choose a threshold on")
        self.identities = None
        self._sides: tuple[Ints, Ints] | None = None
        self._trials: ListedPairs | None = None
        if material.sides is not None:
            names, number = torch.unique(torch.cat(material.sides), return_inverse=True)
            first, second = number[: len(self._same)].numpy(), number[len(self._same) :].numpy()
            impostor = (~self._same).numpy()
            self.identities, self._sides = len(names), (first, second)
            self._trials = ListedPairs(first[impostor], second[impostor], len(names))

    def at(self, far: float) -> tuple[float, float, int]:
        point = tar_at_far(self._scores, self._same, far)
        return point.threshold, point.tar, point.false_accepts

    def accepted(self, value: float) -> tuple[int, float]:
        over = self._scores > value
        return int((over & ~self._same).sum()), float(over[self._same].double().mean())

    def accept_interval(self, value: float, draws: Draws) -> tuple[float, float]:
        who = None if self._sides is None else torch.from_numpy(self._sides[0])[self._same]
        hits = self._scores[self._same] > value
        found = proportion_interval(hits, who, level=draws.level)
        return found.low, found.high

    def accepts(self, value: float) -> Accepts | None:
        if self._sides is None or self._trials is None:
            return None
        over = ((self._scores > value) & ~self._same).numpy()
        return Accepts(self._sides[0][over], self._sides[1][over], np.ones(int(over.sum())), self._trials)
