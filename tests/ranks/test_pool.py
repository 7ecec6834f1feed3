"""The pool of ranks itself: results, errors, hangs and deaths."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankPool


def total(rank: int, world_size: int, factor: int) -> tuple[int, int, float]:
    value = torch.tensor(float(rank + 1) * factor)
    dist.all_reduce(value)
    return rank, dist.get_world_size(), value.item()


def group_exists(rank: int, world_size: int) -> bool:
    return dist.is_initialized()


def raise_on_one(rank: int, world_size: int) -> int:
    if rank == 1:
        raise KeyError("the reason")
    return rank


def hang_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(60)


def die_on_one(rank: int, world_size: int) -> None:
    if rank == 0:
        os._exit(7)


def change_state(rank: int, world_size: int) -> None:
    os.environ["POOL_TEST"] = "1"
    torch.set_default_dtype(torch.float64)


def state(rank: int, world_size: int) -> tuple[bool, torch.dtype, int]:
    return "POOL_TEST" in os.environ, torch.get_default_dtype(), torch.get_num_threads()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_runs_in_a_group(ranks: RankPool, world_size: int) -> None:
    expected = 10.0 * sum(range(1, world_size + 1))
    assert ranks.run(world_size, total, 10) == [(rank, world_size, expected) for rank in range(world_size)]


def test_without_a_group(ranks: RankPool) -> None:
    assert ranks.run(1, group_exists, group=False) == [False]
    assert ranks.run(1, group_exists) == [True]


def test_an_error_names_its_rank_and_the_pool_goes_on(ranks: RankPool) -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 raised KeyError: 'the reason'[\s\S]*raise_on_one"):
        ranks.run(2, raise_on_one)
    pids = ranks.pids
    assert ranks.run(2, total, 1)[0][2] == 3.0
    assert ranks.pids == pids


def test_outcomes_keep_the_ranks_apart(ranks: RankPool) -> None:
    first, second = ranks.outcomes(2, raise_on_one)
    assert first.value == 0
    assert first.error is None
    assert second.error == "KeyError: 'the reason'"


def test_a_hang_ends_in_time_and_shows_where() -> None:
    pool = RankPool()
    try:
        pool.run(2, group_exists)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"ranks \[1\] were not done after 1 s[\s\S]*hang_on_one"):
            pool.run(2, hang_on_one, timeout=1)
        assert time.monotonic() - start < 30
        assert pool.pids == []
        with pytest.raises(RuntimeError, match=r"rank 0 raised ChildProcessError.*exit code 7"):
            pool.run(1, die_on_one)
        assert pool.run(1, group_exists) == [True]
    finally:
        pool.close()


def test_state_does_not_reach_the_next_task(ranks: RankPool) -> None:
    ranks.run(1, change_state)
    assert ranks.run(1, state) == [(False, torch.float32, 1)]
