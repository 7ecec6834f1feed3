"""The threshold for searches: how many strangers find a match in a gallery of a given size.

Whom a gallery holds is chance. So for each picture it is counted which of the other identities score above a threshold;
how likely a gallery of G of them holds none is then known exactly (hypergeometric), and no gallery need be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.calibration.choose_verification import LEAST_FALSE_ACCEPTS, UnresolvedRateError
from lightning_pfc.calibration.material import Material
from lightning_pfc.calibration.spread import Accepts, Draws, quantiles, replicates, scaled, variance
from lightning_pfc.calibration.trials import Floats, Ints, Searches
from lightning_pfc.evaluation.blockwise import UnitRows, entries_above
from lightning_pfc.evaluation.intervals import ratio_interval
from lightning_pfc.matmul.float32 import true_float32
from lightning_pfc.metrics.verification import rate_name
from lightning_pfc.runs.thresholds import Threshold

_BLOCK = 2048
_SAMPLE = 2048


def choose_identification(
    material: Material,
    fpir: float,
    gallery: int,
    *,
    flip: Literal["none", "sum"],
    model: str,
    draws: Draws | None = None,
) -> Threshold:
    """The loosest threshold at which at most the share ``fpir`` of strangers find somebody in a gallery.

    One picture of each identity in the gallery is enrolled, the first one of the set.

    Args:
        material: All pictures of a set, with identities that were not trained on.
        fpir: False positive identification rate, in (0, 1).
        gallery: Identities in the gallery.
        flip: How the embeddings were made.
        model: Fingerprint of the weights.
        draws: Of the bootstrap.

    Returns:
        The threshold; ``accept_rate`` is the share of searches with a mate in the gallery that find it first and above.

    Raises:
        UnresolvedRateError: the set has too few identities for the gallery, or too few searches for the rate.
    """
    draws = draws or Draws()
    found = _Found.of(material, fpir, gallery)
    value = found.threshold(fpir)
    accepts = found.accepts(value)
    own, other = found.deviations(accepts, draws), found.deviations(accepts, draws, salt=1)
    low, high = quantiles(other - own, draws.level)
    ends = [found.threshold(min(fpir * math.exp(-end), 0.9)) for end in quantiles(own, draws.level)]
    rate = found.rate(value)
    hits, trials = found.identified(value)
    interval = ratio_interval(torch.from_numpy(hits), torch.from_numpy(trials), level=draws.level)
    return Threshold(
        name=f"fpir={rate_name(fpir)}@{gallery}",
        kind="identification",
        value=value,
        rate=fpir,
        interval=(rate * math.exp(low), min(1.0, rate * math.exp(high))),
        level=draws.level,
        value_interval=(min(ends), max(ends)),
        accept_rate=float(hits.sum() / trials.sum()),
        accept_interval=(interval.low, interval.high),
        gallery=gallery,
        flip=flip,
        false_accepts=round(rate * found.searches),
        trials=found.searches,
        identities=found.identities,
        chosen_on=material.name,
        model=model,
    )


def check_identification(
    chosen_on: Material, threshold: Threshold, second: Material, draws: Draws | None = None
) -> dict[str, Any] | None:
    """What a threshold does on a second set, beside what was to be expected there; None where it is too small.

    Args:
        chosen_on: The set that it was chosen on.
        threshold: What was chosen.
        second: Another set, of other identities.
        draws: Of the bootstrap.

    Returns:
        As :func:`~lightning_pfc.calibration.choose_verification.check`.
    """
    draws, gallery = draws or Draws(), threshold.gallery or 1
    if second.labels is None or len(second.numbered()[1]) <= gallery:
        return None
    first = _Found.of(chosen_on, threshold.rate, gallery)
    other = _Found.of(second, threshold.rate, gallery, at=threshold.value)
    accepts = first.accepts(threshold.value)
    own = first.deviations(accepts, draws)
    theirs = first.deviations(accepts, draws, size_of=other, salt=1)
    low, high = quantiles(theirs - own, draws.level)
    rate, found = first.rate(threshold.value), other.rate(threshold.value)
    expected = (rate * math.exp(low), min(1.0, rate * math.exp(high)))
    hits, trials = other.identified(threshold.value)
    return {
        "rate": found,
        "false_accepts": round(found * other.searches),
        "trials": other.searches,
        "identities": other.identities,
        "accept_rate": float(hits.sum() / trials.sum()),
        "expected": list(expected),
        "inside": expected[0] <= found <= expected[1],
    }


@dataclass(frozen=True)
class _Found:
    """Scores of pictures with enrolled pictures of other identities, those that may be above a threshold.

    Attributes:
        probe: Which picture, (p,).
        enrolled: Identity that it was compared with, (p,).
        score: (p,) float64.
        number: Identity of each picture, (N,).
        mate: Score of each picture with the enrolled one of its own identity, (N,); nan for those enrolled.
        gallery: Identities in a gallery.
        floor: Scores at or below it are not all here.
    """

    probe: Ints
    enrolled: Ints
    score: Floats
    number: Ints
    mate: Floats
    gallery: int
    floor: float

    @property
    def searches(self) -> int:
        return len(self.number)

    @property
    def identities(self) -> int:
        return int(self.number.max()) + 1

    @staticmethod
    def of(material: Material, fpir: float, gallery: int, at: float | None = None) -> _Found:
        if material.embeddings is None:
            raise UnresolvedRateError(
                f"calibrate.fpir={rate_name(fpir)}: {material.name!r} is a list of pairs; searches need all pictures "
                "of a set with their identities (types run, all_pairs, open_set)"
            )
        number, counts = material.numbered()
        if len(counts) <= gallery:
            raise UnresolvedRateError(
                f"calibrate.gallery={gallery}: {material.name!r} shows {len(counts):,} identities, and strangers must "
                f"be left beside the gallery; use calibrate.gallery={max(1, len(counts) // 2)} or less, or a larger set"
            )
        if fpir * len(number) < LEAST_FALSE_ACCEPTS:
            raise UnresolvedRateError(
                f"calibrate.fpir={rate_name(fpir)}: the {len(number):,} searches of {material.name!r} would hold "
                f"{fpir * len(number):.1f} false alarms, and a threshold needs about {LEAST_FALSE_ACCEPTS}. Give "
                f"{math.ceil(LEAST_FALSE_ACCEPTS / fpir):,} pictures, or ask for calibrate.fpir="
                f"{rate_name(math.ceil(1e3 * LEAST_FALSE_ACCEPTS / len(number)) / 1e3)} or more."
            )
        unit = UnitRows(material.embeddings)
        first = np.unique(number, return_index=True)[1]
        mate = unit.exact(torch.arange(len(number)), torch.from_numpy(first[number])).numpy().copy()
        mate[first] = np.nan
        if at is not None:
            return _Found(*_scores_above(unit, torch.from_numpy(first), number, at), number, mate, gallery, at)
        share = fpir / gallery  # of all scores, if no search met two of them
        while True:
            share = min(1.0, 4.0 * share)
            floor = _floor(unit, number, first, share)
            scores = _scores_above(unit, torch.from_numpy(first), number, floor)
            found = _Found(*scores, number, mate, gallery, floor)
            if share == 1.0 or found.rate(floor) > min(0.95, 2.0 * fpir):
                return found

    def miss(self, above: Ints, gallery: int) -> Floats:
        """Probability that a gallery holds none of the ``above`` identities that would match, (n,)."""
        return _no_hit(self.identities - 1, gallery)(above)

    def rate(self, value: float) -> float:
        """Share of searches by strangers that find a match."""
        above = np.bincount(self.probe[self.score > value], minlength=self.searches)
        return float((1.0 - self.miss(above, self.gallery)).mean())

    def threshold(self, fpir: float) -> float:
        """The loosest score at which the rate is at most ``fpir``."""
        values = np.unique(self.score)
        low, high = 0, len(values) - 1  # the rate falls as the threshold rises
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.rate(float(values[middle])) <= fpir else (middle + 1, high)
        return float(values[low])

    def accepts(self, value: float) -> Accepts:
        """The matches, each counting for its share of a false alarm."""
        over = self.score > value
        probe = self.probe[over]
        above = np.bincount(probe, minlength=self.searches)
        share = (1.0 - self.miss(above, self.gallery)) / np.maximum(above, 1)
        trials = Searches(np.bincount(self.number))
        return Accepts(self.number[probe], self.enrolled[over], share[probe], trials)

    def deviations(self, accepts: Accepts, draws: Draws, *, size_of: _Found | None = None, salt: int = 0) -> Floats:
        """Draws of the logarithm of the rate less that of this set, for a set of another's size."""
        other = size_of or self
        spread = variance(accepts)
        trials = Searches(np.bincount(other.number)).count
        wanted = spread.of_set(other.identities, trials)
        raw = replicates(accepts, draws.replicates, np.random.default_rng([draws.seed, salt]))
        return scaled(raw, wanted * spread.widening(draws.level) ** 2)

    def identified(self, value: float) -> tuple[Floats, Floats]:
        """By identity: how many searches with a mate find it first and above a threshold, and how many there are."""
        mated = ~np.isnan(self.mate)
        own = self.mate[self.probe]
        with np.errstate(invalid="ignore"):
            above = np.bincount(self.probe[self.score >= np.where(np.isnan(own), np.inf, own)], minlength=self.searches)
            found = np.where(mated & (self.mate > value), self.miss(above, self.gallery - 1), 0.0)
        size = self.identities
        hits: Floats = np.bincount(self.number, weights=found, minlength=size).astype(np.float64)
        return hits, np.bincount(self.number, weights=mated.astype(np.float64), minlength=size).astype(np.float64)


def _no_hit(others: int, gallery: int) -> Callable[[Ints], Floats]:
    """Probability that ``gallery`` of ``others`` identities, drawn without replacement, hold none of c marked ones."""

    def probability(marked: Ints) -> Floats:
        most = int(marked.max()) if len(marked) else 0
        steps = np.arange(most)
        # C(n - c, g) / C(n, g) = product over i < c of (n - g - i) / (n - i)
        factors = np.maximum(others - gallery - steps, 0) / np.maximum(others - steps, 1)
        table: Floats = np.concatenate([[1.0], np.cumprod(factors)])
        return table[marked]

    return probability


def _floor(unit: UnitRows, number: Ints, first: Ints, share: float) -> float:
    """A score that about this share of impostor scores exceeds, from a sample of the pictures, less some."""
    rows = np.unique(np.linspace(0, len(number) - 1, min(_SAMPLE, len(number))).astype(np.int64))
    scores = unit.unit[torch.from_numpy(rows)] @ unit.unit[torch.from_numpy(first)].T
    impostor = torch.from_numpy(number[rows][:, None] != np.arange(len(first))[None])
    values = scores[impostor]
    place = max(1, min(len(values), math.ceil(share * len(values))))
    return float(values.kthvalue(len(values) - place + 1).values) - 1e-6


def _scores_above(unit: UnitRows, first: Tensor, number: Ints, floor: float) -> tuple[Ints, Ints, Floats]:
    """Pictures, enrolled identities and exact scores above a floor, of different identities."""
    probes, enrolled, values = [], [], []
    gallery = unit.unit[first]
    with true_float32(), torch.no_grad():
        for top in range(0, len(unit), _BLOCK):
            scores = unit.unit[top : top + _BLOCK] @ gallery.T
            place, _ = entries_above(scores.contiguous(), floor - 2 * unit.tolerance)
            row, column = top + place // len(first), place % len(first)
            other = torch.from_numpy(number[row.numpy()] != column.numpy())
            row, column = row[other], column[other]
            exact = unit.exact(row, first[column])
            over = exact > floor
            probes.append(row[over].numpy())
            enrolled.append(column[over].numpy())
            values.append(exact[over].numpy())
    return np.concatenate(probes), np.concatenate(enrolled), np.concatenate(values)
