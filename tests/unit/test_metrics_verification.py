"""Metrics over pairs and classes in one process."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

from lightning_pfc.metrics import (
    MeanTargetCosine,
    ShardedTopK,
    TARAtFAR,
    VerificationAccuracy,
    VerificationAUC,
    rate_name,
    verification_metrics,
)
from lightning_pfc.metrics.functional import area_under_roc, kfold_accuracy, pair_squared_distances, tar_at_far


class Pairs(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor
    same: torch.Tensor


def make(num_images: int = 60, num_pairs: int = 203) -> tuple[torch.Tensor, Pairs]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(num_images) // 6
    centers = torch.randn(int(labels.max()) + 1, 8, generator=generator)
    embeddings = centers[labels] + 1.0 * torch.randn(num_images, 8, generator=generator)
    first, second = torch.randint(0, num_images, (2, num_pairs), generator=generator)
    half = num_pairs // 2
    second[:half] = first[:half] // 6 * 6 + torch.randint(0, 6, (half,), generator=generator)
    order = torch.randperm(num_pairs, generator=generator)
    first, second = first[order], second[order]
    return embeddings, Pairs(first, second, labels[first] == labels[second])


def test_metrics_are_the_functions_whatever_the_order_and_repetitions() -> None:
    embeddings, pairs = make()
    distances = pair_squared_distances(embeddings, pairs.first, pairs.second)
    metrics = verification_metrics(pairs, fars=(1e-1, 2e-2), prefix="test/", incomplete="raise")
    order = torch.randperm(60)
    for part in torch.cat([order, order[:7]]).split(9):
        metrics.update(embeddings[part], part)
    got = {name: float(value) for name, value in metrics.compute().items()}
    assert got == {
        "test/accuracy": kfold_accuracy(distances, pairs.same).mean,
        "test/auc": area_under_roc(-distances, pairs.same),
        "test/tar@far=1e-1": tar_at_far(-distances, pairs.same, 0.1).tar,
        "test/tar@far=2e-2": tar_at_far(-distances, pairs.same, 0.02).tar,
    }
    # One copy of the embeddings serves all members.
    assert len({id(metric.embeddings[0]) for metric in metrics.values(copy_state=False)}) == 1  # type: ignore[index]


def test_distances_are_computed_once_for_all_metrics_of_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, pairs = make()
    metrics, calls = verification_metrics(pairs), []

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(len(arguments[0]))
        return pair_squared_distances(*arguments)

    monkeypatch.setattr("lightning_pfc.metrics.verification.pair_squared_distances", counted)
    whole = metrics["auc"]
    assert isinstance(whole, VerificationAUC)
    metrics.update(embeddings[:50], torch.arange(50))
    with pytest.warns(UserWarning, match="pairs could be scored"):
        metrics.compute()
    metrics.update(embeddings[50:], torch.arange(50, 60))
    values = {name: float(value) for name, value in metrics.compute().items()}
    scores, same, _ = whole.pair_scores()
    assert calls == [50, 60]
    assert values["auc"] == area_under_roc(scores, same)
    metrics.reset()
    assert whole._last.known is None
    metrics.update(-embeddings.flip(0), torch.arange(60))
    assert float(metrics.compute()["auc"]) != values["auc"]
    assert calls == [50, 60, 60]


@pytest.mark.parametrize(("rows", "pairs"), [(9, 40), (40, 9), (9, 0)])
def test_rows_are_made_unit_once_or_by_the_pair_with_one_result(rows: int, pairs: int) -> None:
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(rows, 37, generator=generator)
    embeddings[2] = 0
    first, second = torch.randint(0, rows, (2, pairs), generator=generator)
    found = pair_squared_distances(embeddings, first, second, chunk=7)
    for k in range(pairs):
        one, two = (embeddings[place[k] : place[k] + 1].double() for place in (first, second))
        one, two = (row / row.square().sum(1, keepdim=True).sqrt().clamp_min(1e-300) for row in (one, two))
        assert found[k] == (one - two).square().sum(1)
    assert embeddings[2].abs().max() == 0


def test_the_first_embedding_of_an_image_counts_and_reset_forgets() -> None:
    embeddings, pairs = make()
    metric = VerificationAUC(pairs)
    metric.update(embeddings, torch.arange(60))
    first = metric.compute()
    metric.update(torch.randn(60, 8), torch.arange(60))
    assert metric.compute() == first
    metric.reset()
    metric.update(embeddings.bfloat16(), torch.arange(60))
    assert metric.compute() != first


def test_exact_thresholds_reach_the_metric() -> None:
    embeddings, pairs = make()
    distances = pair_squared_distances(embeddings, pairs.first, pairs.second)
    metric = VerificationAccuracy(pairs, num_folds=7, thresholds="exact")
    metric.update(embeddings, torch.arange(60))
    assert float(metric.compute()) == kfold_accuracy(distances, pairs.same, num_folds=7, thresholds="exact").mean


def test_folds_that_come_with_the_pairs_are_used() -> None:
    class Folded(NamedTuple):
        first: torch.Tensor
        second: torch.Tensor
        same: torch.Tensor
        fold: torch.Tensor

    embeddings, pairs = make()
    fold = torch.arange(203) % 6 - 1
    distances = pair_squared_distances(embeddings, pairs.first, pairs.second)
    metrics = verification_metrics(Folded(*pairs, fold), fars=(0.1,))
    metrics.update(embeddings, torch.arange(60))
    got = metrics.compute()
    assert float(got["accuracy"]) == kfold_accuracy(distances, pairs.same, num_folds=5, fold=fold).mean
    assert float(got["accuracy"]) != kfold_accuracy(distances, pairs.same, num_folds=5).mean
    assert float(got["tar@far=1e-1"]) == tar_at_far(-distances, pairs.same, 0.1).tar  # of all pairs
    with pytest.raises(ValueError, match="203 pairs but fold has 202"):
        VerificationAUC(Folded(*pairs, fold[1:]))


def test_missing_images_are_told_or_refused() -> None:
    embeddings, pairs = make()
    part = torch.arange(30)
    whole = (pairs.first < 30) & (pairs.second < 30)
    metric = VerificationAUC(pairs)
    metric.update(embeddings[part], part)
    with pytest.warns(UserWarning, match=rf"{int(whole.sum())} of 203 pairs could be scored.*30 of 60 images"):
        value = metric.compute()
    distances = pair_squared_distances(embeddings, pairs.first[whole], pairs.second[whole])
    assert float(value) == area_under_roc(-distances, pairs.same[whole])

    strict = VerificationAUC(pairs, incomplete="raise")
    strict.update(embeddings[part], part)
    with pytest.raises(ValueError, match="incomplete='warn'"):
        strict.compute()

    one = VerificationAccuracy(pairs)
    one.update(embeddings[:1], torch.arange(1))
    with pytest.warns(UserWarning, match="of 203 pairs"):
        assert math.isnan(one.compute())


def test_pair_scores_are_cosines_in_pair_order() -> None:
    embeddings, pairs = make()
    metric = TARAtFAR(pairs, far=0.1)
    metric.update(embeddings, torch.arange(60))
    scores, same, which = metric.pair_scores()
    expected = torch.nn.functional.cosine_similarity(embeddings[pairs.first], embeddings[pairs.second]).double()
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert torch.equal(same, pairs.same)
    assert torch.equal(which, torch.arange(203))
    assert len(metric.index) == 1  # the state is still this process's own


def test_bad_input_is_named() -> None:
    embeddings, pairs = make()
    metric = VerificationAUC(pairs)
    with pytest.raises(ValueError, match=r"embeddings must be \(b, D\)"):
        metric.update(embeddings, torch.arange(59))
    with pytest.raises(ValueError, match="counted from 0"):
        metric.update(embeddings[:1], torch.tensor([-1]))
    with pytest.raises(ValueError, match="lengths 203, 202, 203"):
        VerificationAUC(Pairs(pairs.first, pairs.second[1:], pairs.same))
    with pytest.raises(ValueError, match="incomplete='no'"):
        VerificationAUC(pairs, incomplete="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="far=2"):
        TARAtFAR(pairs, far=2)
    with pytest.raises(ValueError, match="thresholds='x'"):
        VerificationAccuracy(pairs, thresholds="x")  # type: ignore[arg-type]
    metric.update(embeddings, torch.arange(60))
    metric.update(embeddings[:1, :3], torch.tensor([0]))
    with pytest.raises(ValueError, match="several widths"):
        metric.compute()


def test_top_k_and_target_cosine_count() -> None:
    ranks, cosines = torch.tensor([0, 4, 5, 1, 0]), torch.tensor([0.5, 0.25, -1.0, 0.0, 1.0])
    for k, expected in ((1, 2 / 5), (2, 3 / 5), (5, 4 / 5)):
        metric = ShardedTopK(k)
        metric.update(ranks[:2])
        metric.update(ranks[2:])
        assert float(metric.compute()) == expected
        indexed = ShardedTopK(k, num_samples=5)
        indexed.update(ranks[:4], torch.tensor([3, 1, 0, 2]))
        indexed.update(ranks[3:], torch.tensor([2, 4]))
        assert float(indexed.compute()) == expected
    metric = MeanTargetCosine()  # type: ignore[assignment]
    metric.update(cosines)
    assert float(metric.compute()) == pytest.approx(0.15)
    averaged = MeanTargetCosine(num_samples=5)
    averaged.update(torch.cat([cosines, cosines[:2]]), torch.tensor([0, 1, 2, 3, 4, 0, 1]))
    assert float(averaged.compute()) == pytest.approx(0.15)


def test_top_k_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="k=0"):
        ShardedTopK(0)
    with pytest.raises(ValueError, match="num_samples=0"):
        MeanTargetCosine(num_samples=0)
    with pytest.raises(ValueError, match="go together"):
        ShardedTopK(1).update(torch.zeros(2, dtype=torch.int64), torch.arange(2))
    with pytest.raises(ValueError, match="go together"):
        ShardedTopK(1, num_samples=2).update(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"outside \[0, 2\)"):
        ShardedTopK(1, num_samples=2).update(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2]))


@pytest.mark.parametrize(("rate", "name"), [(1e-3, "1e-3"), (0.02, "2e-2"), (0.125, "1.25e-1"), (1.0, "1e0")])
def test_rates_have_one_name(rate: float, name: str) -> None:
    assert rate_name(rate) == name
