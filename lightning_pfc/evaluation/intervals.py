"""Confidence intervals: what would the number have been with other people, or other pairs?

Two units can be drawn anew. **Identities** (images or trials of one person come and go together): the honest choice
wherever identities are known, because the errors of a recogniser sit with few people. **Pairs**, as if they were
independent: all that can be done for files that name no identities; such intervals are somewhat too narrow.

Each figure is a function of how often each unit counts. Its variance is the sum of squares of how far the figure moves
where one unit counts once more (the infinitesimal jackknife: L. Jaeckel, 1972; B. Efron, The Jackknife, the Bootstrap
and Other Resampling Plans, 1982, chapter 6), which is what the bootstrap would find by drawing. The interval is
Student's on the scale of the log odds: near 1, where recognisers are, a sample more often shows fewer of the rare
errors than the population has than more. Its degrees of freedom tell how many units the variance was in effect found on
(F. Satterthwaite, Biometrics Bulletin 2, 1946): few where few people make most errors. Where a threshold is chosen from
the data (TAR at FAR), it moves with them; where it is held fixed, the function says so. Nothing is drawn.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import wraps
from statistics import NormalDist
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_pfc.metrics.functional.checks import check_rate, check_scored_pairs
from lightning_pfc.metrics.functional.curves import allowed_false_accepts, area_under_roc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_P = ParamSpec("_P")


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


def _drew_before(function: Callable[_P, Interval]) -> Callable[_P, Interval]:
    """Takes ``replicates`` and ``seed``, of versions that drew, and says that they do nothing."""

    @wraps(function)
    def called(*arguments: _P.args, **options: _P.kwargs) -> Interval:
        given: dict[str, Any] = options
        if idle := [name for name in ("replicates", "seed") if given.pop(name, None) is not None]:
            text = f"{function.__name__} draws nothing any more: {' and '.join(idle)} have no effect"
            warnings.warn(text, FutureWarning, stacklevel=2)
        return function(*arguments, **options)

    return called


def interval_of(value: float, moves: Floats, level: float = 0.95, trials: int | None = None) -> Interval:
    """Interval of a share, from how far it moves where a unit counts once more.

    Args:
        value: The share that was found, in [0, 1].
        moves: Of each identity (or pair), (n,).
        level: Of confidence.
        trials: How many of them could have failed or not; None: all. It counts where the share is 0 or 1 and nothing
            was seen to vary: the interval is then the exact one of so many trials with one outcome.

    Returns:
        The interval, within [0, 1].

    Raises:
        ValueError: On a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level} must lie in (0, 1), for example 0.95")
    count, tail = len(moves), (1 - level) / 2
    if value in (0.0, 1.0):
        edge = 1 - tail ** (1 / (trials or count))
        return Interval(0.0, edge) if value == 0.0 else Interval(1 - edge, 1.0)
    if count == 1:
        return Interval(0.0, 1.0)  # of one identity nothing can be said of others
    square = np.square(moves - moves.mean())
    total = float(square.sum())
    if not total > 0:
        return Interval(value, value)
    uneven = float(np.square(square).sum()) - total**2 / count
    freedom = 2 * total**2 / uneven if uneven > 0 else math.inf
    spread = math.sqrt(total * count / (count - 1)) / (value * (1 - value))
    reach, odds = _student(1 - tail, max(1.0, freedom)) * spread, math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(min(700.0, max(-700.0, end)))) for end in (reach - odds, -reach - odds))
    return Interval(low, high)


@_drew_before
def proportion_interval(successes: Tensor, cluster: Tensor | None = None, *, level: float = 0.95) -> Interval:
    """Interval of a mean of zeros and ones (accuracy at fixed thresholds, identification rates).

    Args:
        successes: Outcome of each trial, (n,) bool.
        cluster: Identity of each trial, (n,) integers, which come and go as wholes; None takes trials.
        level: Of confidence.

    Returns:
        The interval.

    Raises:
        ValueError: On an empty or unequal input, or a level outside (0, 1).
    """
    if not len(successes) or (cluster is not None and len(cluster) != len(successes)):
        raise ValueError(f"successes has {len(successes)} entries; at least one is needed, and one cluster for each")
    hits = successes.double().cpu()
    if cluster is None:
        return ratio_interval(hits, torch.ones_like(hits), level=level)
    owner = torch.unique(cluster.cpu(), return_inverse=True)[1]
    return ratio_interval(torch.bincount(owner, weights=hits), torch.bincount(owner), level=level)


@_drew_before
def ratio_interval(hits: Tensor, trials: Tensor, *, level: float = 0.95) -> Interval:
    """Interval of ``sum(hits) / sum(trials)`` where clusters (identities) come and go as wholes.

    Args:
        hits: Successes of each cluster, (K,).
        trials: Trials of each cluster, (K,).
        level: Of confidence.

    Returns:
        The interval.

    Raises:
        ValueError: On unequal lengths, no trial at all, or more successes than trials.
    """
    if hits.shape != trials.shape or not float(trials.sum()) > 0:
        raise ValueError("hits and trials must have one entry per cluster, and there must be a trial")
    top, bottom = hits.double().cpu().numpy(), trials.double().cpu().numpy()
    if (top > bottom).any():
        raise ValueError(f"hits has {top[top > bottom][0]:g} in a cluster of {bottom[top > bottom][0]:g} trials")
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    value = float(top.sum() / bottom.sum())
    return interval_of(value, (top - value * bottom) / bottom.sum(), level)


@_drew_before
def tar_interval(
    scores: Tensor,
    same: Tensor,
    far: float,
    identities: tuple[Tensor, Tensor] | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """Interval of the true accept rate at a false accept rate; the threshold moves with the data.

    A genuine pair moves the rate by itself, an impostor pair by moving the threshold: by how much is read from the
    rates at half and at twice as many false accepts. Where not one is allowed, the threshold moves as if one was.

    Args:
        scores: Similarities, (P,).
        same: Whether a pair shows one identity, (P,) bool.
        far: False accept rate in (0, 1].
        identities: Identity of each pair's first and second image, (P,) each; None takes pairs.
        level: Of confidence.

    Returns:
        The interval.

    Raises:
        ValueError: As ``tar_at_far``, or on a level outside (0, 1).
    """
    far = check_rate(far, "far")
    scores, same = check_scored_pairs(scores, same, "scores")
    values, flags = scores.cpu().numpy(), same.cpu().numpy()
    genuine, impostor = np.sort(values[flags]), np.sort(values[~flags])[::-1]
    allowed = allowed_false_accepts(far, len(impostor))
    if allowed >= len(impostor):
        return Interval(1.0, 1.0)  # every pair may be accepted

    def rate(accepted: int) -> float:
        return 1 - float(np.searchsorted(genuine, impostor[accepted], side="right")) / len(genuine)

    value, accepted = rate(allowed), values > impostor[allowed]
    above = accepted[~flags] if accepted[~flags].any() else values[~flags] >= impostor[allowed]
    fewer, more = allowed // 2, min(2 * allowed + 1, len(impostor) - 1)
    slope = (rate(more) - rate(fewer)) * len(impostor) / max(1, more - fewer)
    return interval_of(
        value,
        _moves(flags, accepted[flags] - value, -slope * (above - above.mean()), identities),
        level,
        _trials(flags, identities),
    )


@_drew_before
def auc_interval(
    scores: Tensor, same: Tensor, identities: tuple[Tensor, Tensor] | None = None, *, level: float = 0.95
) -> Interval:
    """Interval of the area under the ROC curve.

    The area is a mean over genuine and impostor pairs; a genuine pair contributes the share of impostors below it, an
    impostor pair the share of genuine pairs above it (E. DeLong, D. DeLong, D. Clarke-Pearson, Biometrics 44, 1988;
    summed over an identity's pairs: N. Obuchowski, Biometrics 53, 1997).

    Args:
        scores: Similarities, (P,).
        same: Whether a pair shows one identity, (P,) bool.
        identities: As for :func:`tar_interval`.
        level: Of confidence.

    Returns:
        The interval.

    Raises:
        ValueError: As ``area_under_roc``, or on a level outside (0, 1).
    """
    scores, same = check_scored_pairs(scores.detach(), same, "scores")
    area = area_under_roc(scores, same)
    values, flags = scores.cpu().numpy(), same.cpu().numpy()
    genuine, impostor = values[flags], values[~flags]
    moves = _moves(
        flags, _share_below(genuine, impostor) - area, 1 - _share_below(impostor, genuine) - area, identities
    )
    return interval_of(area, moves, level, _trials(flags, identities))


def _trials(flags: Flags, identities: tuple[Tensor, Tensor] | None) -> int:
    """How many genuine pairs there are, or identities that have one; impostors where they are fewer."""
    if identities is None:
        return int(min(flags.sum(), (~flags).sum()))
    return len(torch.unique(identities[0].cpu()[torch.from_numpy(flags)]))


def _moves(flags: Flags, of_genuine: Floats, of_impostor: Floats, identities: tuple[Tensor, Tensor] | None) -> Floats:
    """How far a mean over genuine and over impostor pairs moves, for each identity (or pair) that counts once more."""
    pairs: Floats = np.empty(len(flags))
    pairs[flags], pairs[~flags] = of_genuine / len(of_genuine), of_impostor / len(of_impostor)
    if identities is None:
        return pairs
    names, owner = torch.unique(torch.cat([side.cpu() for side in identities]), return_inverse=True)
    first, second = owner.numpy()[: len(flags)], owner.numpy()[len(flags) :]
    other = np.where(flags, 0.0, pairs)  # both pictures of a genuine pair are of one identity
    both = np.bincount(first, pairs, len(names)), np.bincount(second, other, len(names))
    return np.add(*both, dtype=np.float64)


def _share_below(scores: Floats, others: Floats) -> Floats:
    """Share of the others below each score; ties count one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return below / (2 * len(others))


def _student(share: float, freedom: float) -> float:
    """Quantile of Student's distribution: M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 26.7.5."""
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
