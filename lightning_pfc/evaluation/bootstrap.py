"""Confidence intervals: what would the number have been with other people, or other pairs?

Two units can be drawn anew. **Identities** (images or trials of one person come and go together): the honest choice
wherever identities are known, because the errors of a recogniser sit with few people. **Pairs**, as if they were
independent: all that can be done for files that name no identities; such intervals are somewhat too narrow.

How far the value spreads is found by the bootstrap, or for the area under the curve in closed form. The interval is
that of a normal distribution on the scale of the log odds: near 1, where recognisers are, a sample more often shows
fewer of the rare errors than the population has than more, and percentiles of replicates fall short on that side.
Where a threshold is chosen from the data (TAR at FAR), it is chosen anew in every replicate. Where it is held fixed,
the function says so.
"""

from __future__ import annotations

import math
import warnings
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_pfc.metrics.functional.checks import check_rate, check_scored_pairs
from lightning_pfc.metrics.functional.curves import allowed_false_accepts, area_under_roc, tar_at_far

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


def log_odds_interval(value: float, spread: float, units: int, level: float = 0.95) -> Interval:
    """Interval of a share, normal on the scale of its log odds.

    Args:
        value: The share that was found, in [0, 1].
        spread: Its standard deviation.
        units: How many identities (or pairs) it was found on. It counts where the share is 0 or 1 and nothing was seen
            to vary: the interval is then the exact one of that many trials with one outcome.
        level: Of confidence.

    Returns:
        The interval, within [0, 1].
    """
    tail = (1 - level) / 2
    if value in (0.0, 1.0):
        edge = 1 - tail ** (1 / units)
        return Interval(0.0, edge) if value == 0.0 else Interval(1 - edge, 1.0)
    reach = NormalDist().inv_cdf(1 - tail) * spread / (value * (1 - value))
    odds = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(min(700.0, max(-700.0, end)))) for end in (reach - odds, -reach - odds))
    return Interval(low, high)


def proportion_interval(
    successes: Tensor, cluster: Tensor | None = None, *, level: float = 0.95, replicates: int = 1000, seed: int = 0
) -> Interval:
    """Interval of a mean of zeros and ones (accuracy at fixed thresholds, identification rates).

    Args:
        successes: Outcome of each trial, (n,) bool.
        cluster: Identity of each trial, (n,) integers, drawn as wholes; None draws trials.
        level: Share of replicates inside.
        replicates: How many to draw.
        seed: Of the draws.

    Returns:
        The interval.

    Raises:
        ValueError: On an empty or unequal input, or a level outside (0, 1).
    """
    if not len(successes) or (cluster is not None and len(cluster) != len(successes)):
        raise ValueError(f"successes has {len(successes)} entries; at least one is needed, and one cluster for each")
    hits = successes.double().cpu()
    if cluster is None:
        rng = _generator(seed, level, replicates)
        share = float(hits.mean())
        return _around(share, rng.binomial(len(hits), share, replicates) / len(hits), len(hits), level)
    owner = torch.unique(cluster.cpu(), return_inverse=True)[1]
    return ratio_interval(
        torch.bincount(owner, weights=hits), torch.bincount(owner), level=level, replicates=replicates, seed=seed
    )


def ratio_interval(
    hits: Tensor, trials: Tensor, *, level: float = 0.95, replicates: int = 1000, seed: int = 0
) -> Interval:
    """Interval of ``sum(hits) / sum(trials)`` when clusters (identities) are drawn anew.

    Args:
        hits: Successes of each cluster, (K,).
        trials: Trials of each cluster, (K,).
        level: Share of replicates inside.
        replicates: How many to draw.
        seed: Of the draws.

    Returns:
        The interval.

    Raises:
        ValueError: On unequal lengths or no trial at all.
    """
    if hits.shape != trials.shape or not float(trials.sum()) > 0:
        raise ValueError("hits and trials must have one entry per cluster, and there must be a trial")
    rng = _generator(seed, level, replicates)
    top, bottom = hits.double().cpu().numpy(), trials.double().cpu().numpy()
    used = bottom > 0
    top, bottom = top[used], bottom[used]
    values = np.empty(replicates)
    share = np.full(len(top), 1.0 / len(top))
    for r in range(replicates):
        weight = rng.multinomial(len(top), share)
        values[r] = weight @ top / (weight @ bottom)
    return _around(float(top.sum() / bottom.sum()), values, len(top), level)


def tar_interval(
    scores: Tensor,
    same: Tensor,
    far: float,
    identities: tuple[Tensor, Tensor] | None = None,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of the true accept rate at a false accept rate; the threshold is found anew in every replicate.

    Drawing pairs needs no sums over them: the number of draws above a score is binomial, so the order statistic that is
    the threshold sits at a Beta-distributed place, and the accepted genuine pairs are binomial. Drawing identities
    weighs an impostor pair by the product of its identities' weights and a genuine pair by its identity's.

    Args:
        scores: Similarities, (P,).
        same: Whether a pair shows one identity, (P,) bool.
        far: False accept rate in (0, 1].
        identities: Identity of each pair's first and second image, (P,) each; None draws pairs.
        level: Share of replicates inside.
        replicates: How many to draw.
        seed: Of the draws.

    Returns:
        The interval.

    Raises:
        ValueError: As ``tar_at_far``, or on a level outside (0, 1).
    """
    far = check_rate(far, "far")
    scores, same = check_scored_pairs(scores, same, "scores")
    values, flags = scores.cpu().numpy(), same.cpu().numpy()
    rng = _generator(seed, level, replicates)
    impostor, genuine = np.sort(values[~flags])[::-1], np.sort(values[flags])
    allowed = allowed_false_accepts(far, len(impostor))
    if allowed >= len(impostor):
        return Interval(1.0, 1.0)  # every pair may be accepted
    value = tar_at_far(scores, same, far).tar
    if identities is not None:
        count, a, b = _numbered(identities)
        return _around(value, _tar_by_identity(values, flags, a, b, count, far, rng, replicates), count, level)
    place = rng.beta(allowed + 1, len(impostor) - allowed, replicates) * len(impostor)
    threshold = impostor[np.minimum(place.astype(np.int64), len(impostor) - 1)]
    accepted = 1.0 - np.searchsorted(genuine, threshold, side="right") / len(genuine)
    return _around(value, rng.binomial(len(genuine), accepted) / len(genuine), len(genuine), level)


def auc_interval(
    scores: Tensor,
    same: Tensor,
    identities: tuple[Tensor, Tensor] | None = None,
    *,
    level: float = 0.95,
    replicates: int | None = None,
    seed: int | None = None,
) -> Interval:
    """Interval of the area under the ROC curve, from what each identity (or pair) contributes to it.

    The area is a mean over genuine and impostor pairs; a genuine pair contributes the share of impostors below it, an
    impostor pair the share of genuine pairs above it (E. DeLong, D. DeLong, D. Clarke-Pearson, Biometrics 44, 1988;
    summed over an identity's pairs: N. Obuchowski, Biometrics 53, 1997). One sort; nothing is drawn.

    Args:
        scores: Similarities, (P,).
        same: Whether a pair shows one identity, (P,) bool.
        identities: As for :func:`tar_interval`.
        level: Of confidence.
        replicates: Of earlier versions, which drew; without effect.
        seed: As ``replicates``.

    Returns:
        The interval.

    Raises:
        ValueError: As ``area_under_roc``, or on a level outside (0, 1).
    """
    _check_level(level)
    if replicates is not None or seed is not None:
        warnings.warn("auc_interval draws nothing: replicates and seed have no effect", FutureWarning, stacklevel=2)
    area = area_under_roc(scores, same)
    values, flags = scores.cpu().numpy(), same.cpu().numpy()
    genuine, impostor = values[flags], values[~flags]
    moves: Floats = np.empty(len(values))  # how far the area moves, for each pair that counted once more
    moves[flags] = (_share_below(genuine, impostor) - area) / len(genuine)
    moves[~flags] = (1 - _share_below(impostor, genuine) - area) / len(impostor)
    units, sums = min(len(genuine), len(impostor)), moves
    if identities is not None:
        units, first, second = _numbered(identities)
        other = np.where(flags, 0.0, moves)  # both pictures of a genuine pair are of one identity
        both = np.bincount(first, moves, units), np.bincount(second, other, units)
        sums = np.add(*both, dtype=np.float64)
    return log_odds_interval(area, math.sqrt(float((sums**2).sum()) * units / max(1, units - 1)), units, level)


def _share_below(scores: Floats, others: Floats) -> Floats:
    """Share of the others below each score; ties count one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return below / (2 * len(others))


def _tar_by_identity(
    values: Floats,
    flags: npt.NDArray[np.bool_],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    num_identities: int,
    far: float,
    rng: np.random.Generator,
    replicates: int,
) -> Floats:
    order = np.argsort(-values, kind="stable")
    values, flags, first, second = values[order], flags[order], first[order], second[order]
    results = []
    for _ in range(replicates):
        weight = _identity_weights(rng, num_identities, first, second, flags)
        bad = np.cumsum(np.where(flags, 0.0, weight))
        good = np.cumsum(np.where(flags, weight, 0.0))
        if not bad[-1] or not good[-1]:
            continue
        # The first impostor that makes too many: its score, and all that tie with it, are not accepted.
        stop = int(np.searchsorted(bad, far * bad[-1] * (1 + 1e-12), side="right"))
        accepted = int(np.searchsorted(-values, -values[stop], side="left")) if stop < len(values) else len(values)
        results.append(float(good[accepted - 1] / good[-1]) if accepted else 0.0)
    return np.array(results)


def _numbered(identities: tuple[Tensor, Tensor]) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many identities there are, and the number of each pair's first and second one, from 0."""
    names, owner = torch.unique(torch.cat([side.cpu() for side in identities]), return_inverse=True)
    first = len(identities[0])
    return len(names), owner[:first].numpy(), owner[first:].numpy()


def _identity_weights(
    rng: np.random.Generator,
    num_identities: int,
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    flags: npt.NDArray[np.bool_],
) -> Floats:
    drawn = rng.multinomial(num_identities, np.full(num_identities, 1.0 / num_identities)).astype(np.float64)
    return np.where(flags, drawn[first], drawn[first] * drawn[second])


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level} must lie in (0, 1), for example 0.95")


def _generator(seed: int, level: float, replicates: int) -> np.random.Generator:
    _check_level(level)
    if replicates < 2:
        raise ValueError(f"replicates={replicates} must be at least 2; 1000 is usual")
    return np.random.default_rng(seed)


def _around(value: float, replicates: Floats, units: int, level: float) -> Interval:
    if not len(replicates):
        return Interval(float("nan"), float("nan"))
    return log_odds_interval(value, float(replicates.std()), units, level)
