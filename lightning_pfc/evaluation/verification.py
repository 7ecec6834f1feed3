"""Verification of given pairs: accuracy and true accept rates by folds, areas, and true accept rates over all pairs."""

from __future__ import annotations

from torch import Tensor

from lightning_pfc.data.images import ImageTable
from lightning_pfc.evaluation.context import EvaluationContext
from lightning_pfc.evaluation.intervals import auc_interval, proportion_interval, tar_interval
from lightning_pfc.evaluation.pairs import IndexedPairs
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, ScoredPairs, unresolved
from lightning_pfc.metrics.functional import (
    area_under_roc,
    cosine_from_squared_distance,
    equal_error_rate,
    kfold_accuracy,
    kfold_tar_at_far,
    pair_squared_distances,
    tar_at_far,
)
from lightning_pfc.metrics.verification import rate_name

Sides = tuple[Tensor, Tensor]


def verify_pairs(
    context: EvaluationContext,
    name: str,
    pairs: IndexedPairs,
    embeddings: Tensor,
    images: ImageTable | None,
    identities: Tensor | None,
) -> ProtocolResult:
    """What the protocol of pairs finds.

    Args:
        context: Whose settings are followed.
        name: What the user calls the set.
        pairs: Of rows of ``embeddings``.
        embeddings: (N, D), of any length.
        images: Of the embeddings, for pictures of pairs.
        identities: Of each, (N,) int64, for intervals by identity; None, or any below zero: intervals by pair.
    """
    distances = pair_squared_distances(embeddings, pairs.first, pairs.second)
    scores, same = cosine_from_squared_distance(distances), pairs.same
    who = None if identities is None or bool((identities < 0).any()) else identities
    sides = None if who is None else (who[pairs.first], who[pairs.second])
    found: list[Measurement] = []
    threshold = None
    if bool((pairs.fold >= 0).any()):
        found, threshold = _by_folds(context, distances, pairs, sides)
    interval = context.interval(auc_interval, scores, same, sides)
    found.append(Measurement("auc", area_under_roc(scores, same), interval))
    found.append(Measurement("eer", equal_error_rate(scores, same)))
    found += _accept_rates(context, scores, same, sides)
    unit = "pairs" if who is None else "identities"
    text = (
        f"verification, {len(same)} pairs ({int(same.sum())} genuine) of {len(embeddings)} images, "
        f"flip {context.flip}, intervals by {unit}"
        f"{unresolved('FAR', context.settings.fars, int((~same).sum()), 'impostor pairs')}"
    )
    return ProtocolResult(name, text, found, ScoredPairs(scores, pairs, images, threshold))


def _by_folds(
    context: EvaluationContext, distances: Tensor, pairs: IndexedPairs, sides: Sides | None
) -> tuple[list[Measurement], float]:
    """Numbers whose thresholds come from the other folds, and the cosine in the middle of these thresholds."""
    same, folds = pairs.same, 1 + int(pairs.fold.max())
    result = kfold_accuracy(distances, same, num_folds=folds, fold=pairs.fold)
    exact = kfold_accuracy(distances, same, num_folds=folds, fold=pairs.fold, thresholds="exact")
    inside = pairs.fold >= 0
    right = (distances[inside] < result.fold_threshold[pairs.fold[inside]]) == same[inside]
    interval = context.interval(proportion_interval, right, None if sides is None else sides[0][inside])
    note = f"{folds} folds, std {result.std:.4f}; with exact thresholds {exact.mean:.4f}"
    found = [Measurement("accuracy", result.mean, interval, note)]
    if bool(inside.all()):
        val = kfold_tar_at_far(distances, same, 1e-3, num_folds=folds, fold=pairs.fold)
        note = f"threshold from the other folds, std {val.std:.4f}, far {val.far:.1e}"
        found.append(Measurement("val@far=1e-3", val.tar, None, note))
    return found, 1.0 - 0.5 * float(result.fold_threshold.median())


def _accept_rates(context: EvaluationContext, scores: Tensor, same: Tensor, sides: Sides | None) -> list[Measurement]:
    """The true accept rate at each false accept rate that the impostors resolve."""
    impostors = int((~same).sum())
    found = []
    for far in context.settings.fars:
        if far * impostors < 1:
            continue
        point = tar_at_far(scores, same, far)
        interval = context.interval(tar_interval, scores, same, far, sides)
        note = f"{point.false_accepts} false, cos > {point.threshold:.4f}"
        found.append(Measurement(f"tar@far={rate_name(far)}", point.tar, interval, note))
    return found
