"""Seventeen runs on a real controller, fifteen of them disturbed: each ends with the bits of the one left alone.

``pytest --tier nightly tests/nightly/test_slurm_disturbed.py -n 0 -v`` prints the table. A run is disturbed as it
starts, in mid-epoch, at the last step of an epoch and the first one of the next, as it ends, and twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.trainer.cluster.controller import Cluster, Job, running_cluster, why_not
from tests.trainer.test_slurm import GATE, ONE, TWO, died, preempted, same, script, start, warned

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason := why_not()), reason=reason), pytest.mark.timeout(900)]

Disturb = Callable[[Cluster, Job], None]
Place = str | int
LAST = ["+logger.last._target_=tests.trainer.cluster.gate.LastLogger", "+logger.last.start=0"]
STEPS = {1: 252, 2: 126}  # of a run, by ranks; an epoch is half of it


def requeued(cluster: Cluster, job: Job) -> None:
    cluster.run("scontrol", "requeue", job.number)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def alone(cluster: Cluster) -> dict[int, Job]:
    """The runs that nobody disturbs, by ranks."""
    return {1: start(cluster, "alone 1", ONE), 2: start(cluster, "alone 2", TWO)}


CASES: list[tuple[int, list[tuple[Disturb, Place]]]] = [
    (2, [(warned, "start")]),
    (2, [(preempted, "start")]),
    (2, [(requeued, "start")]),
    (2, [(warned, 20)]),
    (2, [(script, 20)]),
    (2, [(preempted, 20)]),
    (2, [(requeued, 20)]),
    (2, [(died, 70)]),
    (2, [(warned, 63)]),
    (2, [(warned, 64)]),
    (2, [(warned, 20), (preempted, 40)]),
    (1, [(warned, 20)]),
    (1, [(died, 20)]),
    (1, [(warned, "end")]),
    (1, [(requeued, 130), (died, 140), (warned, "start")]),
]


def _name(case: tuple[int, list[tuple[Disturb, Place]]]) -> str:
    return f"{case[0]} ranks: " + ", ".join(f"{disturb.__name__} at {place}" for disturb, place in case[1])


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_it_ends_with_the_bits_of_the_run_left_alone(
    cluster: Cluster, alone: dict[int, Job], case: tuple[int, list[tuple[Disturb, Place]]]
) -> None:
    ranks, disturbances = case
    places = [place for _, place in disturbances]
    words = LAST if places == ["end"] else [GATE, f"+callbacks.gate.stops=[{','.join(map(str, places))}]"]
    name = _name(case).replace(":", "").replace(",", "")
    job = start(cluster, name, ONE if ranks == 1 else TWO, *words, options=("--export=ALL,RETRIES=3",))
    for number, (disturb, place) in enumerate(disturbances):
        job.wait_for_stop(place, number)
        disturb(cluster, job)
    job.finish()
    alone[ranks].finish()
    assert same(job.run, alone[ranks].run, STEPS[ranks]), job.log()
