"""Judging figures beside slow twins: a loop over single cosines, on small random sets full of ties.

Coordinates are small whole numbers, so that equal and parallel embeddings, embeddings of zeros, single pictures of an
identity, distractors and labels far apart all come up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lightning_pfc import PartialFC
from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.blockwise import UnitRows
from lightning_pfc.evaluation.identification import DISTRACTOR, rank_among_distractors, search, tpir_at_fpir
from lightning_pfc.evaluation.intervals import interval_of
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.metrics.functional import area_under_roc, equal_error_rate, tar_at_far

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SETS = 25


def random_set(seed: int) -> tuple[np.random.Generator, Floats, Ints]:
    """Embeddings (N, D) and labels (N,)."""
    draw = np.random.default_rng(seed)
    count, width, span = int(draw.integers(4, 30)), int(draw.integers(1, 9)), int(draw.choice([1, 2, 4]))
    rows = draw.integers(-span, span + 1, (count, width)).astype(np.float64)
    labels = draw.integers(0, int(draw.integers(1, count + 1)), count) * int(draw.choice([1, 7, 10**12]))
    return draw, rows, labels


def cosines(one: Floats, other: Floats) -> Floats:
    """(n, m), each number from its two rows alone."""
    a, b = UnitRows(torch.from_numpy(one)), UnitRows(torch.from_numpy(other))
    lengths = a.norms[:, None] * b.norms
    return ((one[:, None] * other[None]).sum(2) / lengths.numpy()).astype(np.float64)


def tar_by_trying(scores: Floats, same: npt.NDArray[np.bool_], far: float) -> tuple[float, int]:
    """The lowest threshold that is allowed: true accept rate and false accepts."""
    impostor = scores[~same]
    for threshold in (-math.inf, *sorted(set(scores.tolist()))):
        accepts = int((impostor > threshold).sum())
        if accepts <= Fraction(repr(far)) * len(impostor):
            return float((scores[same] > threshold).mean()), accepts
    raise AssertionError("nothing above the highest score")


@pytest.mark.parametrize("seed", range(SETS))
def test_rates_of_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=int(draw.integers(3, 50))).round(int(draw.choice([0, 1, 8])))
    same = draw.random(len(scores)) < draw.choice([0.1, 0.5, 0.9])
    same[:2] = True, False
    given = torch.from_numpy(scores), torch.from_numpy(same)
    for far in (1.0, 0.5, 1 / 3, 0.1, 0.01):
        found = tar_at_far(*given, far)
        assert (found.tar, found.false_accepts) == tar_by_trying(scores, same, far)
    halves = np.sign(scores[same][:, None] - scores[~same]) / 2 + 0.5
    assert area_under_roc(*given) == pytest.approx(halves.mean(), abs=1e-12)
    before, cuts = (0.0, 1.0), sorted(set(scores.tolist()), reverse=True)
    for cut in cuts:
        now = float((scores[~same] >= cut).mean()), float((scores[same] < cut).mean())
        if now[0] >= now[1]:
            share = (before[1] - before[0]) / (before[1] - before[0] + now[0] - now[1])
            assert equal_error_rate(*given) == pytest.approx(before[0] + share * (now[0] - before[0]), abs=1e-12)
            break
        before = now


@pytest.mark.parametrize("seed", range(SETS))
def test_searches(seed: int) -> None:
    draw, rows, labels = random_set(seed)
    half, block = len(rows) // 2, int(draw.choice([1, 3, 4096]))
    names = labels[half:].copy()
    names[draw.random(len(names)) < 0.2] = DISTRACTOR
    table, given = cosines(rows[:half], rows[half:]), torch.from_numpy(rows)
    found = search(given[:half], torch.tensor(labels[:half]), given[half:], torch.tensor(names), block=block)
    hits, best = [], []
    for i, scores in enumerate(table):
        own = names == labels[i]
        assert bool(found.mated[i]) == own.any()
        best.append(scores[own].max() if own.any() else scores.max())
        if own.any():
            hits.append(int((scores[~own] >= best[-1]).sum()))
    assert found.rank[found.mated].tolist() == hits
    assert found.score.tolist() == best
    mated = found.mated.numpy()
    if 0 < mated.sum() < half:
        strangers = np.array(best)[~mated]
        for rate in (1.0, 0.5, 1 / 3):
            first = np.array(hits) == 0
            threshold = next(
                t
                for t in (-math.inf, *sorted(set(best)))
                if int((strangers > t).sum()) <= Fraction(repr(rate)) * len(strangers)
            )
            assert tpir_at_fpir(found, rate)[0] == (first & (np.array(best)[mated] > threshold)).mean()


@pytest.mark.parametrize("seed", range(SETS))
def test_all_pairs_and_distractors(seed: int) -> None:
    draw, rows, labels = random_set(seed)
    first, second = np.triu_indices(len(rows), 1)
    table, same = cosines(rows, rows), labels[first] == labels[second]
    block, others = int(draw.choice([1, 3, 2048])), draw.integers(-2, 3, (9, rows.shape[1])).astype(np.float64)
    given, names = torch.from_numpy(rows), torch.from_numpy(labels)
    if not same.any():
        return
    trials = [
        (label, int((cosines(rows[[i]], others) >= table[i, j]).sum()))
        for i, label in enumerate(labels)
        for j in range(len(rows))
        if i != j and label == labels[j]
    ]
    who, rank = rank_among_distractors(given, names, torch.from_numpy(others), block=block)
    assert sorted(zip(who.tolist(), rank.tolist(), strict=True)) == sorted(trials)
    if not same.all():
        fars = (1.0, 0.5, 0.1, 0.01)
        for point in all_pairs_tar(given, names, fars, block=block).points:
            assert (point.tar, point.false_accepts) == tar_by_trying(table[first, second], same, point.wanted_far)


def galleries(identity: Sequence[int], seed: int, draws: int) -> list[dict[int, int]]:
    """The known picture of each identity, as ``one_shot`` draws them."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(identity), generator=generator).tolist() for _ in range(draws)]
    return [{identity[row]: row for row in order} for order in orders]


def rate_without(table: Floats, identity: Sequence[int], known: list[dict[int, int]], k: int) -> Callable[[int], float]:
    def rate(left_out: int) -> float:
        outcomes = []
        for gallery in known:
            for probe, own in enumerate(identity):
                if probe == gallery[own] or own == left_out:
                    continue
                others = [row for name, row in gallery.items() if name not in (own, left_out)]
                outcomes.append(sum(table[probe, row] >= table[probe, gallery[own]] for row in others) < k)
        return float(np.mean(outcomes)) if outcomes else 0.0

    return rate


@pytest.mark.parametrize("seed", range(SETS))
def test_one_shot_and_its_jackknife(seed: int) -> None:
    """Ties are those of float64 cosines: a product in float32 told every fourth set of parallel embeddings apart."""
    _, rows, labels = random_set(seed)
    identity = np.unique(labels, return_inverse=True)[1].tolist()
    size, known = max(identity) + 1, galleries(identity, seed, 3)
    ranks = [k for k in (1, 2) if k < size] if 1 < size < len(rows) else []
    found = one_shot(torch.from_numpy(rows), torch.from_numpy(labels), ranks=(1, 2), draws=3, seed=seed)
    assert len(found) == len(ranks)
    searching = len({own for gallery in known for row, own in enumerate(identity) if row != gallery[own]})
    for k, measurement in zip(ranks, found, strict=True):
        rate = rate_without(cosines(rows, rows), identity, known, k)
        assert measurement.value == pytest.approx(rate(-1), abs=1e-12)
        without = np.array([rate(left_out) for left_out in range(size)])
        moves = (without.mean() - without) * (size - 1) / size
        assert measurement.interval == pytest.approx(interval_of(rate(-1), moves, 0.95, searching), abs=1e-9)


def test_a_network_that_says_nothing_is_never_right() -> None:
    """Embeddings of zeros, equal centers and a center of NaN were all top-1 hits."""
    head = PartialFC(embedding_dim=4, num_classes=9, loss="cosface").to("cpu")
    labels = torch.arange(5)
    assert head.target_ranks(torch.zeros(5, 4), labels).rank.tolist() == [8] * 5
    with torch.no_grad():
        head.weight.copy_(torch.eye(4).repeat(3, 1)[:9])  # classes 0, 4 and 8 are one, and three pairs
        head.weight[3] = torch.nan
    ranks = head.target_ranks(torch.eye(4).repeat(2, 1)[:5], labels).rank
    assert ranks.tolist() == [2, 1, 1, 8, 2]
