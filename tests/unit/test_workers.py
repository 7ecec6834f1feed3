"""The workers share most files, and those that measure time start when one worker is left: played without processes."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests import tiers
from tests.workers import TogetherThenAlone

SHARED = [f"tests/unit/test_{letter}.py" for letter in "abcdefgh"]
ALONE = [f"tests/{name}" for name in tiers.ALONE[:4]]
APART = [f"tests/{name}" for name in tiers.ONE_AT_A_TIME[:3]]
LONG = [f"tests/{name}" for name in tiers.LONG[:1]]


class Node:
    """A worker: it runs what it was sent in order, and its last test only when it knows that no other follows."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.queue: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    def next(self) -> int | None:
        return self.queue.pop(0) if len(self.queue) > 1 or (self.queue and self.shutting_down) else None


def begin(tests: list[str], workers: int) -> tuple[TogetherThenAlone, list[Node]]:
    """A schedule that has sent its first work, and the workers."""
    config: Any = SimpleNamespace(getvalue=lambda name: ["popen"] * workers)
    config.option = SimpleNamespace(loadscopereorder=True)
    schedule, nodes = TogetherThenAlone(config), [Node(n) for n in range(workers)]
    for node in nodes:
        schedule.add_node(node)  # type: ignore[arg-type]
        schedule.add_node_collection(node, tests)  # type: ignore[arg-type]
    schedule.schedule()
    return schedule, nodes


def play(tests: list[str], workers: int, seed: int) -> list[tuple[str, int]]:
    """The tests in the order in which they are run, each with how many workers there still were."""
    schedule, nodes = begin(tests, workers)
    ran: list[tuple[str, int]] = []
    rng = random.Random(seed)
    for _ in range(10 * len(tests)):
        for node in rng.sample(nodes, len(nodes)):
            if (index := node.next()) is not None:
                ran.append((tests[index], len(nodes)))
                schedule.mark_test_complete(node, index)  # type: ignore[arg-type]
            elif node.shutting_down and not node.queue:
                nodes.remove(node)
                if node in schedule.nodes:
                    assert schedule.remove_node(node) is None  # type: ignore[arg-type]
            if rng.random() < 0.5:
                break
    assert not nodes
    return ran


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_all_are_run_once_and_those_that_measure_time_by_the_last_worker(workers: int, seed: int) -> None:
    rng = random.Random(seed)
    files = [*SHARED, *ALONE, *APART, *LONG]
    tests = [f"{file}::test_{n}" for file in files for n in range(rng.randint(1, 9))]
    ran = play(tests, workers, seed)
    assert sorted(test for test, _ in ran) == sorted(tests)
    assert {left for test, left in ran if test.split("::")[0] in ALONE} == {1}
    first = [tests[node.queue[0]].split("::")[0] for node in begin(tests, workers)[1]]
    assert first[:2] == [APART[0], LONG[0]][:workers]  # no worker waits long for the other at the end
    whole = [test.split("::")[0] for test, left in ran if left == 1]
    assert whole == sorted(whole, key=whole.index)  # a file is not taken up again


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_no_two_files_that_start_clusters_are_under_way_at_once(workers: int, seed: int) -> None:
    rng = random.Random(seed)
    tests = [f"{file}::test_{n}" for file in [*SHARED, *APART] for n in range(rng.randint(1, 9))]
    ran = [test.split("::")[0] for test, _ in play(tests, workers, seed)]
    spans = sorted((ran.index(file), len(ran) - 1 - ran[::-1].index(file)) for file in APART)
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("files", [SHARED, ALONE, APART, SHARED[:1], ALONE[:1], APART[:1]])
def test_one_kind_alone(files: list[str]) -> None:
    tests = [f"{file}::test" for file in files]
    assert sorted(test for test, _ in play(tests, 2, 0)) == sorted(tests)
