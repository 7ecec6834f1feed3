"""The threshold for a false accept rate of pairs, and what it does on other identities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.calibration.material import Material
from lightning_pfc.calibration.spread import (
    Accepts,
    Variance,
    of_pairs,
    quantiles,
    replicates,
    scaled,
    variance,
)
from lightning_pfc.calibration.trials import AllPairs, Floats, Ints, ListedPairs
from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.blockwise import UnitRows, entries_above
from lightning_pfc.evaluation.intervals import proportion_interval, ratio_interval
from lightning_pfc.matmul.float32 import true_float32
from lightning_pfc.metrics.functional import tar_at_far
from lightning_pfc.metrics.verification import rate_name
from lightning_pfc.runs.thresholds import Threshold

LEAST_FALSE_ACCEPTS = 30
_BLOCK = 2048


class UnresolvedRateError(ValueError):
    """A set is too small for a rate; the message says how large it must be, and which rate it resolves."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Of the bootstrap.

    Attributes:
        level: Share of replicates within an interval.
        replicates: How many.
        seed: Of the draws.
    """

    level: float = 0.95
    replicates: int = 1000
    seed: int = 0


def choose(
    material: Material, far: float, *, flip: Literal["none", "sum"], model: str, draws: Draws | None = None
) -> Threshold:
    """The loosest threshold that accepts at most the share ``far`` of a set's impostor pairs.

    Args:
        material: The set; identities in it must not have been trained on.
        far: The rate, in (0, 1).
        flip: How the embeddings were made.
        model: Fingerprint of the weights.
        draws: Of the bootstrap.

    Returns:
        The threshold, with the interval in which the rate of another set of this size lies.

    Raises:
        UnresolvedRateError: fewer than 30 impostor pairs would be accepted.
        ValueError: the set makes no genuine or no impostor pair.
    """
    draws = draws or Draws()
    pairs = _Pairs.of(material)
    if far * pairs.impostors < LEAST_FALSE_ACCEPTS:
        raise UnresolvedRateError(_too_few(material.name, far, pairs.impostors))
    value, accept_rate, false_accepts = pairs.at(far)
    if false_accepts < LEAST_FALSE_ACCEPTS:
        raise UnresolvedRateError(
            f"calibrate.far={rate_name(far)}: so many impostor pairs of {material.name!r} score exactly the same that "
            f"{false_accepts} of them or far too many are accepted; are pictures there twice under other names?"
        )
    own, other = pairs.deviations(value, draws, None), pairs.deviations(value, draws, None, salt=1)
    low, high = quantiles(other - own, draws.level)
    ends = [pairs.at(min(far * math.exp(-end), 0.5))[0] for end in quantiles(own, draws.level)]
    rate = false_accepts / pairs.impostors
    return Threshold(
        name=f"far={rate_name(far)}",
        kind="verification",
        value=value,
        rate=far,
        interval=(rate * math.exp(low), min(1.0, rate * math.exp(high))),
        level=draws.level,
        value_interval=(min(ends), max(ends)),
        accept_rate=accept_rate,
        accept_interval=pairs.accept_interval(value, draws),
        flip=flip,
        unit="identities" if material.unit == "identities" else "pairs",
        false_accepts=false_accepts,
        trials=pairs.impostors,
        identities=pairs.identities,
        chosen_on=material.name,
        model=model,
    )


def independent_accepts(material: Material, threshold: Threshold) -> float:
    """How many independent false accepts those of a set are worth: few identities may make many of them."""
    return 1.0 / _Pairs.of(material).variance(threshold.value).whole


def check(chosen_on: Material, threshold: Threshold, second: Material, draws: Draws | None = None) -> dict[str, Any]:
    """What a threshold does on a second set, beside what was to be expected there.

    Args:
        chosen_on: The set that it was chosen on.
        threshold: What was chosen.
        second: Another set, of other identities.
        draws: Of the bootstrap.

    Returns:
        ``rate``, ``false_accepts``, ``trials``, ``identities``, ``accept_rate``, ``accept_interval``, ``expected`` (the
        interval of the rate for a set of that size) and ``inside``.
    """
    draws = draws or Draws()
    first, other = _Pairs.of(chosen_on), _Pairs.of(second)
    false_accepts, accept_rate = other.accepted(threshold.value)
    own = first.deviations(threshold.value, draws, None)
    theirs = first.deviations(threshold.value, draws, other, salt=1)
    low, high = quantiles(theirs - own, draws.level)
    rate = threshold.false_accepts / threshold.trials
    expected = (rate * math.exp(low), min(1.0, rate * math.exp(high)))
    found = false_accepts / other.impostors
    return {
        "rate": found,
        "false_accepts": false_accepts,
        "trials": other.impostors,
        "identities": other.identities,
        "accept_rate": accept_rate,
        "accept_interval": list(other.accept_interval(threshold.value, draws)),
        "expected": list(expected),
        "inside": expected[0] <= found <= expected[1],
    }


def _too_few(name: str, far: float, impostors: int) -> str:
    needed = math.ceil(LEAST_FALSE_ACCEPTS / far)
    pictures = math.ceil((1 + math.sqrt(1 + 8 * needed)) / 2)
    resolved = LEAST_FALSE_ACCEPTS / impostors if impostors else 1.0
    way_out = f"or ask for calibrate.far={_rounded_up(resolved)} or more" if resolved < 0.5 else "or a larger set"
    return (
        f"calibrate.far={rate_name(far)}: the {impostors:,} impostor pairs of {name!r} would hold "
        f"{far * impostors:.1f} false accepts, and a threshold needs about {LEAST_FALSE_ACCEPTS}. Give {needed:,} "
        f"impostor pairs (all pairs of some {pictures:,} pictures), {way_out}."
    )


def _rounded_up(rate: float) -> str:
    digits = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return rate_name(math.ceil(rate / digits) * digits)


class _Pairs:
    """Pairs of a set, scored: all of them, or those of a list."""

    impostors: int
    identities: int | None

    @staticmethod
    def of(material: Material) -> _Pairs:
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

    def deviations(self, value: float, draws: Draws, size_of: _Pairs | None, salt: int = 0) -> Floats:
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


class _All(_Pairs):
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


class _Listed(_Pairs):
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


def pairs_above(rows: Tensor, value: float, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All pairs of rows whose cosine is above a value; with labels, of one label only.

    Args:
        rows: (N, D) embeddings.
        value: What to exceed, compared in float64.
        labels: (N,) integers.

    Returns:
        Positions of both rows of each pair, (p,) int64 each, the first smaller.
    """
    if labels is not None:
        return _genuine_above(UnitRows(rows), value, labels)
    unit = UnitRows(rows)
    first, second = [], []
    with true_float32(), torch.no_grad():
        for top in range(0, len(unit), _BLOCK):
            for left in range(top, len(unit), _BLOCK):
                scores = unit.unit[top : top + _BLOCK] @ unit.unit[left : left + _BLOCK].T
                place, _ = entries_above(scores.contiguous(), value - 2 * unit.tolerance)
                a, b = top + place // scores.shape[1], left + place % scores.shape[1]
                a, b = a[a < b], b[a < b]
                over = unit.exact(a, b) > value
                first.append(a[over])
                second.append(b[over])
    return torch.cat(first), torch.cat(second)


def _genuine_above(unit: UnitRows, value: float, labels: Tensor) -> tuple[Tensor, Tensor]:
    order = labels.sort(stable=True).indices
    ordered = labels[order]
    first, second = [], []
    step = 1
    while step < len(order):
        mates = (ordered[:-step] == ordered[step:]).nonzero().squeeze(1)
        if not len(mates):
            break
        first.append(order[mates])
        second.append(order[mates + step])
        step += 1
    if not first:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    a, b = torch.cat(first), torch.cat(second)
    over = unit.exact(a, b) > value
    return torch.minimum(a, b)[over], torch.maximum(a, b)[over]
