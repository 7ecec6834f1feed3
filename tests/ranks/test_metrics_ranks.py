"""Any number of ranks gives the numbers of one, to the bit."""

from __future__ import annotations

import pytest
import torch

from lightning_pfc.metrics import MeanTargetCosine, ShardedTopK, VerificationAUC, verification_metrics
from tests.ranks import RankPool
from tests.unit.test_metrics_verification import make


def verify(rank: int, world_size: int, seen: list[list[int]]) -> tuple[dict[str, float], int]:
    embeddings, pairs = make()
    metrics = verification_metrics(pairs, fars=(1e-1, 1e-2), incomplete="raise")
    for part in torch.tensor(seen[rank], dtype=torch.int64).split(8):
        if len(part):
            metrics.update(embeddings[part], part)
    values = {name: float(value) for name, value in metrics.compute().items()}
    scores, _, _ = metrics["auc"].pair_scores()  # type: ignore[operator]
    return values, len(scores)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_verification_is_that_of_one_rank(ranks: RankPool, world_size: int) -> None:
    alone = verify(0, 1, [list(range(60))])
    # As a padding sampler deals: 60 images do not divide by 8 x ranks, the first ones come twice.
    padded = [*range(60), *range(world_size * 21 - 60)] if world_size < 4 else [*range(60), 0, 1, 2, 3]
    dealt = [padded[r::world_size] for r in range(world_size)]
    assert ranks.run(world_size, verify, dealt) == [alone] * world_size


def test_a_rank_without_images_takes_part(ranks: RankPool) -> None:
    alone = verify(0, 1, [list(range(60))])
    assert ranks.run(2, verify, [[], list(range(60))]) == [alone] * 2
    assert ranks.run(3, verify, [list(range(60)), [], [5]]) == [alone] * 3


def compute_twice(rank: int, world_size: int) -> list[float]:
    embeddings, pairs = make()
    metric = VerificationAUC(pairs)
    values = []
    for _ in range(2):
        part = torch.arange(rank, 60, world_size)
        metric.update(embeddings[part], part)
        values.append(float(metric.compute()))
        metric.reset()
    return values


def test_epochs_do_not_mix(ranks: RankPool) -> None:
    alone = compute_twice(0, 1)
    assert alone[0] == alone[1]
    assert ranks.run(2, compute_twice) == [alone] * 2


def count(rank: int, world_size: int) -> list[float]:
    all_ranks = torch.arange(11) % 4
    cosines = torch.linspace(-1, 1, 11)
    part = torch.tensor(([*range(11), 0])[rank::world_size])  # padded to 12
    metrics = [ShardedTopK(2, num_samples=11), MeanTargetCosine(num_samples=11), ShardedTopK(2), MeanTargetCosine()]
    for metric, values in zip(metrics, (all_ranks, cosines) * 2, strict=True):
        if metric.num_samples is not None:
            metric.update(values[part], part)
        else:
            own = part if rank else part[:-1] if world_size == 1 else part
            metric.update(values[own[: len(own) - (rank == world_size - 1 and world_size > 1)]])
    return [float(metric.compute()) for metric in metrics]


@pytest.mark.parametrize("world_size", [2, 3])
def test_class_metrics_are_those_of_one_rank(ranks: RankPool, world_size: int) -> None:
    alone = count(0, 1)
    for values in ranks.run(world_size, count):
        assert values[::2] == alone[::2]
        assert values == pytest.approx(alone, abs=1e-12)
