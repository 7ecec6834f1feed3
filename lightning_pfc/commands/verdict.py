"""What the figures of a run are worth, in numbers and words: intervals, chance, and the gap to trained identities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.evaluation.intervals import auc_interval, tar_interval
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.validation import ClosedSetEvaluation, VerificationEvaluation

_FARS = {"1e-2": 1e-2, "1e-3": 1e-3}
_PER_IDENTITY = 10  # pictures of trained identities that are embedded for the gap
_MOST_TRAINED = 2000  # of them in all
_GAP = 0.2


class Verdict(NamedTuple):
    """Figures by full name, their 95 % intervals, and sentences."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    words: list[str]


def judge(module: Any, data: Any, metrics: dict[str, float], *, gap: bool) -> Verdict:
    """Judge what the last validation or test measured. Each rank finds the same; no collective.

    Args:
        module: a PartialFCModule, with the evaluations of that stage.
        data: the data module.
        metrics: of the run so far.
        gap: embed trained identities too.
    """
    verdict = Verdict({}, {}, [])
    sets = {**data.verification_sets("validate"), **data.verification_sets("test")}
    closed = {**data.labelled_sets("validate"), **data.labelled_sets("test")}
    for evaluation in getattr(module, "evaluations", []):
        if isinstance(evaluation, VerificationEvaluation) and evaluation.name in sets:
            _of_unseen(evaluation, sets[evaluation.name], metrics, verdict)
            if gap:
                _gap(module, data, evaluation, sets[evaluation.name], verdict)
        elif isinstance(evaluation, ClosedSetEvaluation) and evaluation.name in closed:
            _of_trained(evaluation.name, len(closed[evaluation.name].labels), data.num_classes, metrics, verdict)
    return verdict


def _of_unseen(evaluation: VerificationEvaluation, part: Any, metrics: dict[str, float], verdict: Verdict) -> None:
    name, scores, rows = evaluation.name, evaluation.scores, evaluation.embeddings
    if scores is None or rows is None or not bool(scores.same.any()) or bool(scores.same.all()):
        return
    given = rows.isfinite().all(1)
    for found in one_shot(rows[given], part.identity[given]):
        verdict.metrics[f"{name}/{found.name}"] = found.value
        if found.interval is not None:
            verdict.intervals[f"{name}/{found.name}"] = list(found.interval)
    who = (part.identity[part.pairs.first][scores.pair], part.identity[part.pairs.second][scores.pair])
    impostors = int((~scores.same).sum())
    for word, far in _FARS.items():
        if far * impostors < 1:
            verdict.words.append(
                f"{name}/tar@far={word} says nothing: {impostors:,} pairs of different identities cannot resolve a "
                f"false accept rate of {far:.1%}; {math.ceil(1 / far):,} are the least."
            )
            continue
        interval = tar_interval(scores.score, scores.same, far, who)
        verdict.intervals[f"{name}/tar@far={word}"] = list(interval)
    low, high = auc_interval(scores.score, scores.same, who)
    verdict.intervals[f"{name}/auc"] = [low, high]
    if low <= 0.5 and high < 1:  # an area of 1 is no luck, however few people there are
        area = metrics.get(f"{name}/auc", math.nan)
        verdict.words.append(
            f"Nothing was learned that {name} can show: pairs of one identity score no higher than others (AUC "
            f"{area:.1%}, 95 %: {low:.1%} to {high:.1%}; chance is 50 %). Look whether the labels are right "
            "(`pfc-data check`), and see docs/own_pictures.md."
        )


def _of_trained(name: str, count: int, classes: int, metrics: dict[str, float], verdict: Verdict) -> None:
    """A closed set: against guessing."""
    right, chance = metrics.get(f"{name}/top1", math.nan), 1 / classes
    spread, by_luck = (math.sqrt(share * (1 - share) / count) for share in (right, chance))
    verdict.intervals[f"{name}/top1"] = [max(0.0, right - 1.96 * spread), min(1.0, right + 1.96 * spread)]
    if right <= chance + 2 * by_luck:
        verdict.words.append(
            f"Nothing was learned that {name} can show: {right:.1%} of {count:,} pictures are right, and guessing "
            f"makes {chance:.1%}. Look whether the labels are right (`pfc-data check`), and see docs/own_pictures.md."
        )
    verdict.words.append(f"{name} shows new pictures of trained identities; identities that were not trained do worse.")


def _gap(module: Any, data: Any, evaluation: VerificationEvaluation, part: Any, verdict: Verdict) -> None:
    """The same search among trained identities: as many, with as many pictures."""
    key = f"{evaluation.name}/rank-1"
    if key not in verdict.metrics:
        return
    labels = np.asarray(data.data.labels[np.arange(len(data.data.labels))])
    aside = np.bincount(part.identity.numpy())
    each = int(min(_PER_IDENTITY, max(2, np.median(aside[aside > 0]))))
    places = _some(labels, int((aside > 0).sum()), each)[:_MOST_TRAINED]
    if len(places) < 4:
        return
    found = one_shot(_embedded(module, data, places), torch.from_numpy(labels[places]), ranks=(1,))
    if not found:
        return
    trained, unseen = found[0].value, verdict.metrics[key]
    verdict.metrics[f"{evaluation.name}/rank-1/trained"] = trained
    low, high = verdict.intervals[key]
    verdict.words.append(
        f"With one known picture of each of {int((aside > 0).sum())} identities, {unseen:.1%} of the others are found "
        f"at rank 1 (95 %: {low:.1%} to {high:.1%}); of identities that were trained, {trained:.1%}."
    )
    if trained - unseen > _GAP:
        verdict.words.append(
            "The trained ones are known by heart: more identities, a stronger data.augment or a start from weights "
            "that were trained on more (init_from=CHECKPOINT) help; a longer training does not."
        )


def _some(labels: np.ndarray[Any, Any], identities: int, each: int) -> np.ndarray[Any, Any]:
    """Positions of some pictures of identities that have several, spread evenly."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    several = np.flatnonzero(counts > 1)
    taken = several[np.unique(np.linspace(0, len(several) - 1, min(identities, len(several))).astype(np.int64))]
    return np.concatenate([order[starts[c] : starts[c] + min(each, counts[c])] for c in taken] or [order[:0]])


@torch.no_grad()
def _embedded(module: Any, data: Any, places: np.ndarray[Any, Any]) -> Tensor:
    was = module.training
    module.eval()
    rows = []
    for part in np.array_split(places, max(1, len(places) // 256)):
        images = data.data.train.fetch(part).to(module.device).float().div(127.5).sub(1)
        known = getattr(module, "preprocessing", None)
        rows.append((module(images) if known is None else known.embed(module, images)).float().cpu())
    module.train(was)
    return torch.cat(rows)
