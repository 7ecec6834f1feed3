"""Confidence intervals by the bootstrap: what would the number have been with other people, or other pairs?

Two units can be drawn anew. **Identities** (images or trials of one person come and go together): the honest choice
wherever identities are known, because the errors of a recogniser sit with few people. **Pairs**, as if they were
independent: all that can be done for files that name no identities; such intervals are somewhat too narrow.

Intervals are percentile intervals. Where a threshold is chosen from the data (TAR at FAR), it is chosen anew in every
replicate. Where it is held fixed, the function says so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_pfc.metrics.functional.checks import check_rate, check_scored_pairs
from lightning_pfc.metrics.functional.curves import allowed_false_accepts

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A percentile interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


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
        return _percentiles(rng.binomial(len(hits), float(hits.mean()), replicates) / len(hits), level)
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
    return _percentiles(values, level)


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
    if identities is not None:
        count, a, b = _numbered(identities)
        return _percentiles(_tar_by_identity(values, flags, a, b, count, far, rng, replicates), level)
    impostor, genuine = np.sort(values[~flags])[::-1], np.sort(values[flags])
    allowed = allowed_false_accepts(far, len(impostor))
    if allowed >= len(impostor):
        return Interval(1.0, 1.0)
    place = rng.beta(allowed + 1, len(impostor) - allowed, replicates) * len(impostor)
    threshold = impostor[np.minimum(place.astype(np.int64), len(impostor) - 1)]
    accepted = 1.0 - np.searchsorted(genuine, threshold, side="right") / len(genuine)
    return _percentiles(rng.binomial(len(genuine), accepted) / len(genuine), level)


def auc_interval(
    scores: Tensor,
    same: Tensor,
    identities: tuple[Tensor, Tensor] | None = None,
    *,
    level: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> Interval:
    """Interval of the area under the ROC curve.

    Args:
        scores: Similarities, (P,).
        same: Whether a pair shows one identity, (P,) bool.
        identities: As for :func:`tar_interval`.
        level: Share of replicates inside.
        replicates: How many to draw; each costs a pass over the pairs.
        seed: Of the draws.

    Returns:
        The interval.

    Raises:
        ValueError: As ``area_under_roc``, or on a level outside (0, 1).
    """
    scores, same = check_scored_pairs(scores, same, "scores")
    rng = _generator(seed, level, replicates)
    value, tie = np.unique(scores.cpu().numpy(), return_inverse=True)
    flags = same.cpu().numpy()
    if identities is not None:
        people, a, b = _numbered(identities)
    areas = []
    for _ in range(replicates):
        if identities is not None:
            weight = _identity_weights(rng, people, a, b, flags)
        else:
            weight = np.empty(len(flags))
            for kind in (True, False):
                count = int((flags == kind).sum())
                weight[flags == kind] = np.bincount(rng.integers(0, count, count), minlength=count)
        good = np.bincount(tie[flags], weight[flags], len(value))
        bad = np.bincount(tie[~flags], weight[~flags], len(value))
        if good.sum() and bad.sum():
            below = np.cumsum(bad) - bad
            areas.append(float((good * (below + bad / 2)).sum() / (good.sum() * bad.sum())))
    return _percentiles(np.array(areas), level)


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


def _generator(seed: int, level: float, replicates: int) -> np.random.Generator:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level} must lie in (0, 1), for example 0.95")
    if replicates < 2:
        raise ValueError(f"replicates={replicates} must be at least 2; 1000 is usual")
    return np.random.default_rng(seed)


def _percentiles(values: npt.NDArray[np.float64], level: float) -> Interval:
    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
