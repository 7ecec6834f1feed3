"""ROC, true accept rate at a false accept rate, area and equal error rate: exact, from one sort.

Scores are similarities: higher means more alike, and a pair is accepted when ``score > threshold``. Tied scores are
accepted or rejected together, whatever their order.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.metrics.functional.checks import check_rate, check_scored_pairs


class RocCurve(NamedTuple):
    """One point per distinct score, from "nothing accepted" to "everything accepted".

    Attributes:
        far: False accept rate, shape (T,), float64, increasing.
        tar: True accept rate, shape (T,), float64, increasing.
        threshold: A pair is accepted at point t when ``score >= threshold[t]``; the first is infinite, shape (T,).
        num_genuine: Number of genuine pairs.
        num_impostor: Number of impostor pairs; rates below ``1 / num_impostor`` cannot be told apart.
    """

    far: Tensor
    tar: Tensor
    threshold: Tensor
    num_genuine: int
    num_impostor: int


class OperatingPoint(NamedTuple):
    """What a verifier does at the largest number of false accepts that a rate allows.

    Attributes:
        tar: True accept rate.
        far: False accept rate that is really reached, at most the one asked for.
        threshold: A pair is accepted when ``score > threshold``.
        false_accepts: Impostor pairs accepted; 0 means that the rate asked for is below what the pairs resolve, or that
            ties forbid more.
    """

    tar: float
    far: float
    threshold: float
    false_accepts: int


def roc_curve(scores: Tensor, same: Tensor) -> RocCurve:
    """Exact ROC curve with one point per distinct score.

    Args:
        scores: Similarities, shape (P,), any real dtype; higher means more alike.
        same: Whether a pair shows one identity, shape (P,), bool.

    Returns:
        The curve, starting at (0, 0) and ending at (1, 1).

    Raises:
        ValueError: On wrong shapes, NaN, or when one kind of pairs is missing.
    """
    scores, same = check_scored_pairs(scores, same, "scores")
    threshold, genuine, impostor = cumulative_counts(scores, same)
    num_genuine, num_impostor = int(genuine[-1]), int(impostor[-1])
    infinite = threshold.new_full((1,), torch.inf)
    return RocCurve(
        far=_with_zero(impostor).double() / num_impostor,
        tar=_with_zero(genuine).double() / num_genuine,
        threshold=torch.cat([infinite, threshold]),
        num_genuine=num_genuine,
        num_impostor=num_impostor,
    )


def tar_at_far(scores: Tensor, same: Tensor, far: float) -> OperatingPoint:
    """True accept rate at the loosest threshold whose false accept rate is at most ``far``.

    With N impostor pairs at most ``floor(far * N)`` of them may be accepted (the product is taken in exact decimal
    arithmetic). No interpolation: the operating point is one that the data really has, and never a looser one than
    asked for. Below ``1 / N`` it accepts no impostor at all.

    Args:
        scores: Similarities, shape (P,), any real dtype; higher means more alike.
        same: Whether a pair shows one identity, shape (P,), bool.
        far: Wanted false accept rate, in (0, 1].

    Returns:
        The operating point.

    Raises:
        ValueError: On wrong shapes, NaN, a rate outside (0, 1], or when one kind of pairs is missing.
    """
    far = check_rate(far, "far")
    scores, same = check_scored_pairs(scores, same, "scores")
    genuine, impostor = scores[same], scores[~same]
    allowed = allowed_false_accepts(far, len(impostor))
    if allowed >= len(impostor):
        threshold = scores.new_tensor(-torch.inf)
    else:
        # The best impostor that may not pass; ties with it do not pass either.
        threshold = impostor.kthvalue(len(impostor) - allowed).values
    false_accepts = int((impostor > threshold).sum())
    return OperatingPoint(
        tar=float((genuine > threshold).double().mean()),
        far=false_accepts / len(impostor),
        threshold=float(threshold),
        false_accepts=false_accepts,
    )


def allowed_false_accepts(far: float, num_impostor: int) -> int:
    """Largest number of accepted impostors whose rate is at most ``far``, free of rounding: ``floor(far * N)``."""
    return int(Fraction(repr(float(far))) * num_impostor)


def area_under_roc(scores: Tensor, same: Tensor) -> float:
    """Probability that a genuine pair scores above an impostor pair; ties count one half.

    The pairs of pairs are counted in whole numbers (exact up to 2^62 of them), so the result does not depend on the
    order of the input.

    Args:
        scores: Similarities, shape (P,).
        same: Whether a pair shows one identity, shape (P,), bool.

    Returns:
        Area in [0, 1].

    Raises:
        ValueError: On wrong shapes, NaN, or when one kind of pairs is missing.
    """
    scores, same = check_scored_pairs(scores, same, "scores")
    _, genuine, impostor = cumulative_counts(scores, same)
    genuine_before = _with_zero(genuine)[:-1]
    twice = (impostor.diff(prepend=impostor.new_zeros(1)) * (genuine_before + genuine)).sum()
    return int(twice) / (2 * int(genuine[-1]) * int(impostor[-1]))


def equal_error_rate(scores: Tensor, same: Tensor) -> float:
    """Error rate where false accepts and false rejects are equally frequent.

    Between the two neighbouring points of the ROC curve that embrace equality the curve is taken as a straight line.

    Args:
        scores: Similarities, shape (P,).
        same: Whether a pair shows one identity, shape (P,), bool.

    Returns:
        Rate in [0, 1].

    Raises:
        ValueError: On wrong shapes, NaN, or when one kind of pairs is missing.
    """
    curve = roc_curve(scores, same)
    gap = curve.far - (1.0 - curve.tar)  # rises from -1 to 1
    after = int((gap >= 0).int().argmax())
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(curve.far[before] + share * (curve.far[after] - curve.far[before]))


def cumulative_counts(scores: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores from high to low and, for each, genuine and impostor pairs at or above it (int64)."""
    scores, order = scores.sort(descending=True)
    genuine = same[order].long().cumsum(0)
    last = torch.ones_like(same)
    last[:-1] = scores[1:] != scores[:-1]
    genuine = genuine[last]
    accepted = torch.arange(1, len(scores) + 1, device=scores.device)[last]
    return scores[last], genuine, accepted - genuine


def _with_zero(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts])
