"""Sampling: a function of (seed, step, targets), without replacement, even, in proportion to what is drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pfc.distributed import ClassShard
from lightning_pfc.heads.sampling.uniform_draw import _compact, capacity, class_budget, sample_uniform
from lightning_pfc.keyed_random.permutation import Permutation, round_keys


def step(number: int) -> torch.Tensor:
    return torch.tensor(number)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**62), at=st.integers(0, 2**40))
def test_permutation_is_a_bijection_with_an_inverse(n, seed, at):
    permutation = Permutation(n, round_keys(seed, step(at)))
    x = torch.arange(permutation.domain)
    y = permutation(x)
    assert torch.equal(y.sort().values, x)
    assert torch.equal(permutation.inverse(y), x)
    assert 0 <= permutation.domain - n <= max(3, n**0.5 + 1)


@settings(max_examples=80, deadline=None)
@given(
    classes=st.integers(1, 400),
    batch=st.integers(1, 50),
    rate=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.99]),
    world=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_sample_contract(classes, batch, rate, world, seed):
    labels = torch.randint(0, classes, (batch,), generator=torch.Generator().manual_seed(seed % 997))
    budget = class_budget(rate, classes)
    whole = sample_uniform(labels, labels, ClassShard(classes), budget, seed, step(3))
    ids = torch.arange(classes) if whole.index is None else whole.index
    assert ids.unique().numel() == ids.numel() == whole.num_sampled == max(budget, labels.unique().numel())
    assert set(labels.tolist()) <= set(ids.tolist())
    assert torch.equal(ids[whole.columns], labels)
    try:
        ClassShard(classes, 0, world)
    except ValueError:
        return
    parts = []
    for rank in range(world):
        shard = ClassShard(classes, rank, world)
        part = sample_uniform(labels, labels, shard, budget, seed, step(3))
        local = torch.arange(shard.num_local) if part.index is None else part.index
        parts.append(local + shard.start)
        mine = part.columns >= 0
        assert torch.equal((local + shard.start)[part.columns[mine]], labels[mine])
    assert torch.equal(torch.cat(parts), ids)


def test_negatives_are_even_over_the_classes():
    """Each class and each pair of classes is drawn as often as chance says (chi-square, 5 sigma)."""
    classes, budget, draws = 60, 12, 4000
    hits = torch.zeros(draws, classes)
    for i in range(draws):
        hits[
            i, sample_uniform(torch.tensor([7]), torch.tensor([7]), ClassShard(classes), budget, 11, step(i)).index
        ] = 1
    others = [c for c in range(classes) if c != 7]
    p = (budget - 1) / (classes - 1)
    counts = hits[:, others].sum(0)
    chi = ((counts - draws * p) ** 2 / (draws * p * (1 - p))).sum()
    assert abs(chi - 59) < 5 * (2 * 59) ** 0.5
    row, column = torch.triu_indices(59, 59, 1)
    pairs = (hits[:, others].t() @ hits[:, others])[row, column]
    q = (budget - 1) * (budget - 2) / ((classes - 1) * (classes - 2))
    chi = ((pairs - draws * q) ** 2 / (draws * q * (1 - q))).sum()
    assert abs(chi - pairs.numel()) < 5 * (2 * pairs.numel()) ** 0.5


def test_steps_and_seeds_draw_differently():
    draw = [
        tuple(sample_uniform(torch.tensor([0]), torch.tensor([0]), ClassShard(1000), 50, s, step(t)).index.tolist())
        for s in (0, 1, 2**40)
        for t in range(5)
    ]
    assert len(set(draw)) == len(draw)


def test_static_shapes_give_the_same_classes():
    """What an accelerator runs (no boolean indexing) keeps the same values, padded and marked."""
    values, keep = torch.tensor([5, 3, 9, 1, 7]), torch.tensor([True, False, True, True, False])
    index, valid = _compact(values, keep, 6, 100)
    assert index[valid].tolist() == [1, 5, 9]
    assert (~valid).sum() == 3
    shard = ClassShard(10_000, 1, 4)
    assert capacity(64, shard, 1000) >= 64 + 250
    assert capacity(10**6, shard, 1000) == shard.num_local


@pytest.mark.parametrize(("classes", "world", "most"), [(7, 5, 4), (3, 4, 3), (9, 8, 5), (10, 7, 5)])
def test_empty_shards_name_the_largest_number_of_ranks(classes, world, most):
    for rank in range(world):
        with pytest.raises(ValueError, match=f"at most {most} ranks"):
            ClassShard(classes, rank, world)
    ClassShard(classes, most - 1, most)


@pytest.mark.parametrize("world", [1, 3])
def test_every_class_has_one_owner_and_a_label_that_is_none_has_no_owner(world):
    ids = torch.tensor([[6, -1], [0, 3]])
    shards = [ClassShard(7, rank, world) for rank in range(world)]
    assert sum(shard.owns(ids).int() for shard in shards).tolist() == [[1, 0], [1, 1]]
    found = [row + shard.start for shard in shards for row in shard.local_rows(ids.flatten()).tolist()]
    assert sorted(found) == [0, 3, 6]
