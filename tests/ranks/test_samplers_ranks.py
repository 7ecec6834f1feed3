"""Samplers on real processes: the same classes and the same training on any number of ranks, copies and checkpoints."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.distributed import Comm
from lightning_pfc.heads import sampling as S
from lightning_pfc.losses import CosFace, DSoftmax
from tests.ranks import RankPool
from tests.reference import uneven_split

DIM, CLASSES, BATCH, STEPS = 6, 53, 9, 8

SAMPLERS: list[S.Sampler] = [
    S.Uniform(correction=True),
    S.PositivesOnly(),
    S.RateSchedule(start=0.2, steps=4),
    S.Frequency(alpha=1.0, correction=True),
    S.Retrieval(refresh=5),
    S.Mixed(share=0.5, refresh=10, correction=True),
    S.Mixed(share=0.4, query="target", refresh=3),
    S.RateSchedule(sampler=S.Mixed(refresh=20), start=0.9, steps=6),
    S.Dissection(correction=True),
    S.Recent(share=0.7),
]


def make_head(case: int, comm: Comm | None) -> PartialFC:
    sampler = SAMPLERS[case]
    head = PartialFC(
        embedding_dim=DIM, num_classes=CLASSES, sample_rate=0.5, seed=case, comm=comm, sampler=sampler,
        loss=DSoftmax(scale=8.0) if isinstance(sampler, S.Dissection) else CosFace(scale=8.0),
        chunk_size=7, dtype=torch.float64, init_std=1.0,
    )  # fmt: skip
    head = head if comm is not None else head.to("cpu")
    head.set_class_counts(1 + torch.arange(CLASSES) % 5)
    return head


def batch_of(case: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * case + step)
    x = torch.randn(BATCH, DIM, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def train(
    rank: int, world_size: int, group_size: int | None, cases: list[int], start: int, stop: int, states: Any
) -> list[dict[str, Any]]:
    """Some steps of every case, from saved states or the beginning: losses, classes drawn, state dict."""
    comm = Comm.from_group(head_group_size=group_size) if dist.is_initialized() else Comm.single()
    results = []
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for case in cases:
        head = make_head(case, comm)
        if states is not None:
            head.load_state_dict(states[case])
        record: dict[str, Any] = {"loss": [], "classes": []}
        sampled = head._sample

        def spy(*args: Any, record: dict[str, Any] = record, head: PartialFC = head, sampled: Any = sampled) -> Any:
            found = sampled(*args)
            index = torch.arange(head.shard.num_local) if found.index is None else found.index
            record["classes"].append((index + head.shard.start).tolist())
            return found

        head._sample = spy  # type: ignore[assignment, method-assign]
        for step in range(start, stop):
            x, labels = batch_of(case, step)
            value = head(x[own], labels[own])
            (gradient,) = torch.autograd.grad(value, [head.weight])
            with torch.no_grad():
                head.weight -= 0.5 * gradient
            record["loss"].append(value.detach())
        record["state"] = {name: value.clone() for name, value in head.state_dict().items()}
        results.append(record)
    return results


def whole(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    found = {}
    for name, first in parts[0].items():
        if name == "weight" or name.startswith("sampled_"):
            found[name] = torch.cat([part[name] for part in parts])
        else:
            for part in parts:
                torch.testing.assert_close(part[name], first, rtol=0, atol=0)
            found[name] = first
    return found


def check(outcomes: list[list[dict[str, Any]]], want: list[dict[str, Any]], shards: int, cases: list[int]) -> None:
    for place, expected in enumerate(want):
        got = [rank[place] for rank in outcomes]
        message = f"{SAMPLERS[cases[place]]} on {len(got)} ranks, "
        for first in range(0, len(got), shards):
            group = got[first : first + shards]
            joined = [list(chain(*parts)) for parts in zip(*(rank["classes"] for rank in group), strict=True)]
            assert joined == expected["classes"], message + "classes"
            state = whole([rank["state"] for rank in group])
            assert state.keys() == expected["state"].keys()
            for name, value in expected["state"].items():
                torch.testing.assert_close(
                    state[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name, t=message: f"{t}{n}: {m}"
                )
        for rank in got:
            torch.testing.assert_close(rank["loss"], expected["loss"], rtol=1e-9, atol=1e-9)


CASES = list(range(len(SAMPLERS)))


@pytest.fixture(scope="module")
def single() -> list[dict[str, Any]]:
    return train(0, 1, None, CASES, 0, STEPS, None)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_classes_on_any_number_of_ranks(
    ranks: RankPool, world_size: int, single: list[dict[str, Any]]
) -> None:
    outcomes = ranks.run(world_size, train, None, CASES, 0, STEPS, None)
    check(outcomes, single, world_size, CASES)
    assert all(len({len(classes) for classes in record["classes"]} | {CLASSES}) > 1 for record in single)


def test_the_same_classes_in_every_copy_of_a_head(ranks: RankPool, single: list[dict[str, Any]]) -> None:
    check(ranks.run(4, train, 2, CASES, 0, STEPS, None), single, 2, CASES)


def test_a_checkpoint_goes_on_on_another_number_of_ranks(ranks: RankPool, single: list[dict[str, Any]]) -> None:
    half = STEPS // 2
    first = ranks.run(2, train, None, CASES, 0, half, None)
    states = [whole([rank[case]["state"] for rank in first]) for case in CASES]
    second = ranks.run(3, train, None, CASES, half, STEPS, states)
    want = [
        {"loss": record["loss"][half:], "classes": record["classes"][half:], "state": record["state"]}
        for record in single
    ]
    check(second, want, 3, CASES)


def threads(rank: int, world_size: int) -> list[list[int]]:
    """A background refresh: no two runs are alike, but all ranks take part in one softmax."""
    comm = Comm.from_group()
    head = PartialFC(
        embedding_dim=DIM, num_classes=CLASSES, sample_rate=0.5, comm=comm, init_std=1.0, loss=CosFace(scale=8.0),
        sampler=S.Retrieval(background=True, refresh=2),
    )  # fmt: skip
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    losses = []
    for step in range(9):
        x, labels = batch_of(0, step)
        losses.append(head(x[own].float(), labels[own]).item())
    return losses


def test_background_refresh_on_two_ranks(ranks: RankPool) -> None:
    first, second = ranks.run(2, threads)
    assert first == second
