"""Templates against the definition as loops; intervals against distributions that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score, roc_curve

from lightning_pfc.evaluation.intervals import _student, auc_interval, proportion_interval, ratio_interval, tar_interval
from lightning_pfc.evaluation.templates import TemplateMode, template_features, template_scores, tpr_at_nearest_fpr
from lightning_pfc.metrics.functional.curves import area_under_roc


@pytest.mark.parametrize("norm", ["keep", "unit"])
@pytest.mark.parametrize("detector", [True, False])
def test_templates_are_sums_over_media_of_means(norm: str, detector: bool) -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(200, 8)), rng.random(200)
    templates, media = rng.integers(10, 30, 200), rng.integers(0, 6, 200)
    mode = TemplateMode(feature_norm=norm, detector=detector)  # type: ignore[arg-type]
    pooled, numbers = template_features(
        torch.from_numpy(features),
        torch.from_numpy(templates),
        torch.from_numpy(media),
        detector_scores=torch.from_numpy(weights),
        mode=mode,
    )
    images = features / np.linalg.norm(features, axis=1, keepdims=True) if norm == "unit" else features
    images = images * weights[:, None] if detector else images
    assert numbers.tolist() == sorted(set(templates.tolist()))
    for row, number in enumerate(numbers.tolist()):
        total = np.zeros(8)
        for medium in np.unique(media[templates == number]):
            total += images[(templates == number) & (media == medium)].mean(0)
        np.testing.assert_allclose(pooled[row].numpy(), total / np.linalg.norm(total), atol=1e-14)
    first, second = numbers[torch.tensor([0, 3, 5])], numbers[torch.tensor([1, 3, 2])]
    expected = [float(pooled[a] @ pooled[b]) for a, b in ((0, 1), (3, 3), (5, 2))]
    assert template_scores(pooled, numbers, first, second, chunk=2).tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="second names template 99"):
        template_scores(pooled, numbers, first, torch.tensor([10, 99, 11]))


def test_the_mode_is_part_of_the_name_and_checked() -> None:
    assert TemplateMode().name == "F1-Nkeep-D1"
    assert TemplateMode(flip=False, feature_norm="unit", detector=False).name == "F0-Nunit-D0"
    with pytest.raises(ValueError, match="feature_norm='no'"):
        TemplateMode(feature_norm="no")  # type: ignore[arg-type]
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="detector_scores is missing"):
        template_features(torch.ones(3, 2), ones, ones)
    with pytest.raises(ValueError, match="media must have one entry"):
        template_features(torch.ones(3, 2), ones, ones[1:], detector_scores=ones)


@pytest.mark.parametrize("digits", [None, 1])
def test_nearest_point_is_the_published_one(digits: int | None) -> None:
    rng = np.random.default_rng(1)
    same = rng.random(5000) < 0.1
    scores = rng.normal(size=5000) + 2 * same
    scores = scores if digits is None else scores.round(digits)
    fpr, tpr, _ = roc_curve(same, scores)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    for rate in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1):
        expected = tpr[min(zip(abs(fpr - rate), range(len(fpr)), strict=True))[1]]
        assert tpr_at_nearest_fpr(torch.from_numpy(scores), torch.from_numpy(same), rate) == pytest.approx(expected)


def test_proportion_interval_is_binomial_and_wider_for_clusters() -> None:
    hits = torch.arange(1000) < 900
    low, high = proportion_interval(hits)
    half = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    assert (low, high) == (pytest.approx(0.9 - half, abs=2e-3), pytest.approx(0.9 + half, abs=2e-3))  # type: ignore[comparison-overlap]
    # All errors sit with 10 of 100 people.
    wide = proportion_interval(hits, torch.arange(1000) // 10)
    assert wide == pytest.approx(binomtest(90, 100).proportion_ci(method="wilson"), abs=0.008)
    assert ratio_interval(torch.tensor([9.0] * 50), torch.tensor([10] * 50)) == pytest.approx((0.9, 0.9), abs=1e-12)


def slow_tar(scores: np.ndarray, same: np.ndarray, far: float) -> float:
    impostor = np.sort(scores[~same])[::-1]
    return float((scores[same] > impostor[int(far * len(impostor))]).mean())


def test_tar_interval_is_the_one_of_real_resampling() -> None:
    rng = np.random.default_rng(2)
    same = np.arange(3000) < 1000
    scores = rng.normal(size=3000) + 2.5 * same
    values = []
    for _ in range(1500):
        genuine, impostor = rng.choice(scores[same], 1000), rng.choice(scores[~same], 2000)
        values.append(slow_tar(np.concatenate([genuine, impostor]), same, 0.01))
    expected = np.quantile(values, [0.025, 0.975])
    got = tar_interval(torch.from_numpy(scores), torch.from_numpy(same), 0.01)
    assert got == pytest.approx(expected, abs=0.012)
    assert got.low < slow_tar(scores, same, 0.01) < got.high


def test_intervals_by_identity_hold_what_they_promise() -> None:
    """Of 95 % intervals by identity from 60 draws of people, most hold the number of all people; by pair, fewer."""
    rng = np.random.default_rng(3)
    quality = rng.normal(size=4000) * 1.2
    truth, area, inside, inside_pairs, areas = 0.0, 0.0, 0, 0, 0
    for trial in range(61):
        people = np.arange(4000) if trial == 0 else rng.integers(0, 4000, 100)
        a = np.repeat(np.arange(len(people)), 8)
        genuine = 2.0 + quality[people][a] + rng.normal(size=len(a)) * 0.3
        b = (a + rng.integers(1, len(people), len(a))) % len(people)
        scores = np.concatenate([genuine, rng.normal(size=len(a))])
        same = np.arange(2 * len(a)) < len(a)
        if trial == 0:
            truth = slow_tar(scores, same, 0.1)
            area = area_under_roc(torch.from_numpy(scores), torch.from_numpy(same))
            continue
        first, second = torch.from_numpy(np.tile(a, 2)), torch.from_numpy(np.concatenate([a, b]))
        tensors = torch.from_numpy(scores), torch.from_numpy(same)
        low, high = tar_interval(*tensors, 0.1, (first, second))
        inside += low <= truth <= high
        low, high = tar_interval(*tensors, 0.1)
        inside_pairs += low <= truth <= high
        low, high = auc_interval(*tensors, (first, second))
        areas += low <= area <= high
    assert inside >= 57
    assert areas >= 56
    assert inside_pairs <= 46  # three in four


def by_student(value: float, spread: float, freedom: float) -> tuple[float, float]:
    odds, reach = np.log(value / (1 - value)), student.ppf(0.975, freedom) * spread / (value * (1 - value))
    return 1 / (1 + np.exp(reach - odds)), 1 / (1 + np.exp(-reach - odds))


@pytest.mark.parametrize("by_identity", [False, True])
def test_intervals_are_as_wide_as_drawing_says(by_identity: bool) -> None:
    """The slow twin draws identities (or pairs) anew, with the threshold found anew."""
    rng = np.random.default_rng(4)
    people, count = 200, 4000
    owner = np.arange(count) % people
    same = np.arange(count) < 1000
    scores = rng.normal(size=count) + 1.0 * same + 0.8 * rng.normal(size=people)[owner] * same
    scores = scores.round(2)  # with ties
    other = np.where(same, owner, (owner + 1 + np.arange(count) // people) % people)
    areas, rates = [], []
    for _ in range(500):
        if by_identity:
            drawn = rng.multinomial(people, np.full(people, 1 / people))
            weight = np.where(same, drawn[owner], drawn[owner] * drawn[other])
        else:
            weight = np.concatenate([np.bincount(rng.integers(0, n, n), minlength=n) for n in (1000, 3000)])
        areas.append(roc_auc_score(same, scores, sample_weight=weight))
        rates.append(slow_tar(np.repeat(scores, weight), np.repeat(same, weight), 0.1))
    identities = (torch.from_numpy(owner), torch.from_numpy(other)) if by_identity else None
    given = torch.from_numpy(scores), torch.from_numpy(same)
    freedom = 150 if by_identity else 1000
    found = auc_interval(*given, identities)
    assert found == pytest.approx(by_student(roc_auc_score(same, scores), float(np.std(areas)), freedom), abs=0.003)
    assert tar_interval(*given, 0.1, identities) == pytest.approx(
        by_student(slow_tar(scores, same, 0.1), float(np.std(rates)), freedom), abs=0.012
    )
    with pytest.warns(FutureWarning, match="auc_interval draws nothing any more: replicates have no effect"):
        assert auc_interval(*given, identities, replicates=300) == found  # type: ignore[call-arg]


@pytest.mark.parametrize("freedom", [2, 3, 8, 30, 1e6])
def test_quantiles_of_student(freedom: float) -> None:
    assert _student(0.975, freedom) == pytest.approx(student.ppf(0.975, freedom), rel=0.01)
    assert _student(0.95, freedom) == pytest.approx(student.ppf(0.95, freedom), rel=0.01)


def test_few_people_who_make_all_errors_widen_an_interval() -> None:
    """One of 100 people in error at 10 of 10 trials, or 10 of them at 1: as many errors, another certainty."""
    trials = torch.full((100,), 10)
    of_one, of_ten = trials.clone(), trials.clone()
    of_one[0], of_ten[:10] = 0, 9
    one, ten = ratio_interval(of_one, trials), ratio_interval(of_ten, trials)
    assert one.high - one.low > 5 * (ten.high - ten.low)
    assert one.low < 0.9 < one.high < 1


def test_perfect_scores_are_no_certainty() -> None:
    """0 of 50 people in error: of that many trials with one outcome, the exact interval ends at 0.025^(1/50)."""
    same, who = torch.arange(100) < 50, torch.arange(100) % 50
    scores, sides = same.double() + torch.linspace(0, 0.1, 100), (who, torch.where(same, who, (who + 1) % 50))
    expected: Any = (pytest.approx(0.025 ** (1 / 50)), 1.0)
    assert tar_interval(scores, same, 0.1, sides) == expected
    assert auc_interval(scores, same, sides) == expected
    assert ratio_interval(torch.full((50,), 2.0), torch.full((50,), 2)) == expected
    assert proportion_interval(torch.ones(50, dtype=torch.bool)) == expected
    assert tar_interval(scores, same, 1.0, sides) == (1.0, 1.0)  # every pair is accepted: nothing to be uncertain of
    more, many = torch.cat([scores, torch.zeros(5000)]), torch.cat([same, torch.zeros(5000, dtype=torch.bool)])
    assert tar_interval(more, many, 0.1) == expected  # impostors are no trials of this rate
    assert auc_interval(more, many) == expected
    one, other = (torch.cat([side, 100 + torch.arange(5000) % 700]) for side in sides)
    assert tar_interval(more, many, 0.1, (one, other)) == expected  # nor is who has no genuine pair
    assert ratio_interval(torch.tensor([5]), torch.tensor([10])) == (0.0, 1.0)
    with pytest.raises(ValueError, match="hits has 12 in a cluster of 10"):
        ratio_interval(torch.tensor([12, 1]), torch.tensor([10, 10]))


def test_flags_may_be_numbers_and_scores_of_any_kind() -> None:
    same, scores = torch.arange(40) % 2 == 0, torch.linspace(-1, 1, 40).roll(7)
    found = auc_interval(scores, same)
    assert auc_interval(scores, same.int()) == found
    assert auc_interval(scores.double().requires_grad_(), same) == pytest.approx(found, abs=1e-6)
    auc_interval(scores.bfloat16(), same)


def test_no_false_accept_is_allowed_and_yet_the_threshold_moves() -> None:
    """1,000 impostors at 1e-4: the threshold is the highest of them, and that is luck."""
    rng = np.random.default_rng(0)
    same, inside = torch.arange(2000) < 1000, 0
    for _ in range(40):
        scores = torch.from_numpy(rng.normal(size=2000) + 3.0 * same.numpy())
        low, high = tar_interval(scores, same, 1e-4)
        inside += low <= 0.4 <= high  # P(N(3, 1) > 3.24), the median of the highest of 1,000, is 0.405
    assert inside >= 20


def test_bad_levels_are_named() -> None:
    with pytest.raises(ValueError, match="level=95"):
        proportion_interval(torch.ones(3, dtype=torch.bool), level=95)
    with pytest.raises(ValueError, match="at least one is needed"):
        proportion_interval(torch.ones(0, dtype=torch.bool))
