"""One-shot identification, and that its interval and that of TAR cover what they should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lightning_pfc.evaluation.intervals import auc_interval, tar_interval
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.metrics.functional.curves import area_under_roc, tar_at_far


def population(identities: int, each: int, width: int, noise: float) -> torch.Tensor:
    """(identities, each, width); some identities are harder than others."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(identities, 1, width, generator=generator)
    own = noise * (0.5 + torch.rand(identities, 1, 1, generator=generator))
    found = centers + own * torch.randn(identities, each, width, generator=generator)
    return torch.nn.functional.normalize(found, dim=2)


def test_the_rate_is_the_mean_over_all_galleries() -> None:
    rows, labels = population(4, 2, 3, 1.0).flatten(0, 1), torch.arange(4).repeat_interleave(2)
    hits = {1: 0, 2: 0}
    for choice in itertools.product((0, 1), repeat=4):  # every gallery that there is
        known = [2 * i + k for i, k in enumerate(choice)]
        for i, k in enumerate(choice):
            scores = rows[2 * i + 1 - k] @ rows[known].T
            rank = int((scores >= scores[i]).sum()) - 1
            hits = {wanted: count + (rank < wanted) for wanted, count in hits.items()}
    found = one_shot(rows, labels, ranks=(1, 2, 9), draws=1000)
    assert [each.name for each in found] == ["rank-1", "rank-2"]  # of four, none can be missed at rank 9
    for each, count in zip(found, hits.values(), strict=True):
        assert each.value == pytest.approx(count / 64, abs=0.03)


def test_ties_singles_and_sets_without_a_search() -> None:
    equal = torch.ones(6, 3)
    assert one_shot(equal, torch.tensor([0, 0, 1, 1, 2, 3]), ranks=(1,))[0].value == 0.0
    apart = torch.eye(3).repeat_interleave(2, dim=0)
    found = one_shot(apart, torch.tensor([0, 0, 1, 1, 2, 2]), ranks=(1,))[0]
    assert found.value == 1.0
    assert found.interval is not None
    assert found.interval.high == 1.0
    assert found.interval.low == pytest.approx(0.025 ** (1 / 3))  # three identities do not prove much
    assert one_shot(apart, torch.arange(6)) == []
    assert one_shot(apart, torch.zeros(6, dtype=torch.int64)) == []
    with pytest.raises(ValueError, match="must be"):
        one_shot(apart, torch.arange(5))


def test_intervals_cover_the_value_of_the_population() -> None:
    """50 test sets of 40 identities: the 95 % intervals hold the population's value 90 to 98 % of the time."""
    everyone, generator = population(2000, 6, 8, 0.7), torch.Generator().manual_seed(1)
    sets = [everyone[torch.randperm(2000, generator=generator)[:40]].flatten(0, 1) for _ in range(50)]
    labels = torch.arange(40).repeat_interleave(6)
    for rates in zip(*(one_shot(rows, labels, draws=4) for rows in sets), strict=True):
        # The value belongs to galleries of 40, so it is the mean over many of them.
        more = [everyone[torch.randperm(2000, generator=generator)[:40]].flatten(0, 1) for _ in range(100)]
        k = int(rates[0].name.removeprefix("rank-"))
        truth = float(np.mean([one_shot(rows, labels, ranks=(k,), draws=4)[0].value for rows in more]))
        inside = sum(r.interval is not None and r.interval.low <= truth <= r.interval.high for r in rates)
        assert 45 <= inside <= 50, rates[0].name


def test_the_interval_of_tar_covers_it_too() -> None:
    everyone, generator = population(1000, 4, 8, 0.7), torch.Generator().manual_seed(2)

    def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        rows = everyone[torch.randperm(1000, generator=generator)[:count]].flatten(0, 1)
        labels = torch.arange(count).repeat_interleave(4)
        first, second = torch.triu_indices(len(rows), len(rows), 1)
        return (rows @ rows.T)[first, second], labels[first] == labels[second], (labels[first], labels[second])

    truth = float(np.mean([float(tar_at_far(*pairs(200)[:2], 1e-2).tar) for _ in range(8)]))
    area = float(np.mean([area_under_roc(*pairs(200)[:2]) for _ in range(8)]))
    inside, areas = 0, 0
    for _ in range(50):
        scores, same, who = pairs(40)
        found = tar_interval(scores, same, 1e-2, who)
        inside += found.low <= truth <= found.high
        low, high = auc_interval(scores, same, who)
        areas += low <= area <= high
    assert 45 <= inside <= 50
    assert 45 <= areas <= 50
