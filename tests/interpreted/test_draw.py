"""The drawing kernels beside :func:`sample_uniform`, bit for bit."""

from __future__ import annotations

import pytest
import torch

from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.sampling.draw_kernel import draw_uniform
from lightning_pfc.heads.sampling.uniform_draw import class_budget, sample_uniform
from lightning_pfc.kernels.gpu import drawing
from lightning_pfc.kernels.launching import counted_launches

SEED = 0x123456789ABCDEF0
CASES = [
    # classes, labels, rate, ranks
    (1000, 24, 0.1, 1),
    (1000, 24, 0.0, 3),
    (500, 12, 0.7, 3),
    (199, 80, 0.05, 2),  # more targets than the budget
    (1511, 9, 0.1, 2),
    (31, 5, 0.5, 1),
    (33, 40, 0.9, 2),
    (2, 1, 0.5, 1),
]


def check(labels: torch.Tensor, own: torch.Tensor, shard: ClassShard, budget: int, step: int) -> None:
    with counted_launches() as names:
        found = draw_uniform(labels, own, shard, budget, SEED, torch.tensor(step))
    assert len(names) <= 6
    expected = sample_uniform(labels, own, shard, budget, SEED, torch.tensor(step), static_shapes=True)
    for name in ("index", "valid", "columns", "num_sampled"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other), name
    assert found.num_valid == found.valid.sum()
    exact = sample_uniform(labels, own, shard, budget, SEED, torch.tensor(step), static_shapes=False)
    assert torch.equal(found.index[found.valid], exact.index)
    assert torch.equal(found.columns, exact.columns)


@pytest.mark.parametrize(("classes", "count", "rate", "parts"), CASES)
def test_the_draw_is_that_of_the_cpu(classes, count, rate, parts):
    torch.manual_seed(classes)
    kinds = [torch.randint(0, classes, (count,)), torch.full((count,), classes - 1), torch.arange(count) % classes]
    steps = (0, 7, 2**32 + 5)
    for rank in range(parts):
        shard = ClassShard(classes, rank, parts)
        for kind in (0, 1, 2) if rank == 0 else (0, rank):  # all on the first rank, random and one other on each
            labels = kinds[kind]
            check(labels, labels[: max(1, count // 2)], shard, class_budget(rate, classes), steps[kind])


def test_several_tiles_of_each_block(monkeypatch):
    monkeypatch.setattr(drawing, "MOST_BLOCKS", 2)
    monkeypatch.setattr(drawing, "CANDIDATES", 64)
    monkeypatch.setattr(drawing, "WORDS", 4)
    labels = torch.randint(0, 1100, (20,))
    for rank in range(2):
        check(labels, labels, ClassShard(1100, rank, 2), 300, 3)


def test_labels_without_a_class_are_no_targets():
    labels = torch.tensor([5, -1, 17, 5, 999])
    shard = ClassShard(1000)
    found = draw_uniform(labels, labels, shard, 3, SEED, torch.tensor(1))
    real = labels[labels >= 0]
    expected = sample_uniform(real, real, shard, 3, SEED, torch.tensor(1), static_shapes=False)
    assert torch.equal(found.index[found.valid], expected.index)
    assert found.columns.tolist() == [0, -1, 1, 0, 2]
    assert found.num_sampled == 3


def test_labels_may_be_a_column_of_a_table():
    labels = torch.arange(48).view(24, 2)[:, 1]  # a single GPU gathers nothing, so they come as the user made them
    check(labels, labels, ClassShard(1000), 100, 3)


def test_two_billion_classes_on_a_million_ranks():
    classes, parts = 44_720**2, 999_940  # a square, so that every candidate is a class
    labels = torch.tensor([classes - 1, 0, classes // 2, 1_999_501_007])
    for rank in (0, 999_750):
        check(labels, labels, ClassShard(classes, rank, parts), 5, 9)
