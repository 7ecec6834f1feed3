"""Heartbeats between threads of one process: what is found out, and what is not mistaken for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lightning_pfc.callbacks import Watchdog
from lightning_pfc.distributed.heartbeat import Heartbeat, Pace, Pulse

PACE = Pace(interval=0.05, silent_after=1.0, stalled_after=60.0)


class World:
    """Hub and spokes, each with the verdicts that it has heard."""

    def __init__(self, size: int, pace: Pace = PACE) -> None:
        self.heard: list[list[tuple[str, str]]] = [[] for _ in range(size)]
        self.pulses = [Pulse() for _ in range(size)]
        self.beats = [
            Heartbeat(rank, size, self.pulses[rank], pace, lambda kind, text, rank=rank: self.note(rank, kind, text))
            for rank in range(size)
        ]
        port, token = self.beats[0].listen()
        for beat in self.beats:
            beat.start("localhost", port, token)
        time.sleep(0.3)

    def note(self, rank: int, kind: str, text: str) -> None:
        self.heard[rank].append((kind, text))

    def wait(self, ranks: list[int], seconds: float = 5.0) -> None:
        wait_for(lambda: all(self.heard[rank] for rank in ranks), seconds)

    def close(self) -> None:
        for beat in self.beats:
            beat.stop()


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_is_well_when_all_say_goodbye() -> None:
    world = World(3)
    for order in (2, 0, 1):  # rank 0 goes before one of the others
        world.beats[order].stop()
        time.sleep(0.2)
    assert world.heard == [[], [], []]
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_an_error_is_told_with_the_rank() -> None:
    world = World(3)
    world.beats[2].fail("KeyError: 'x'")
    world.wait([0, 1])
    assert world.heard[0] == world.heard[1] == [("failed", "rank 2: KeyError: 'x'")]
    world.close()


def test_an_error_on_rank_0_is_told_before_it_goes() -> None:
    world = World(3)
    world.beats[0].fail("OSError: disk")
    world.wait([1, 2])
    assert world.heard[1] == world.heard[2] == [("failed", "rank 0: OSError: disk")]
    world.close()


def test_the_rank_that_is_behind_is_the_one_that_is_stuck() -> None:
    world = World(3, Pace(interval=0.05, silent_after=10.0, stalled_after=1.0))
    for rank, pulse in enumerate(world.pulses):
        pulse.mark((7, 2) if rank == 1 else (8, 0), "loading" if rank == 1 else "training_step")
    world.wait([0, 1, 2])
    kind, text = world.heard[2][0]
    assert kind == "stalled"
    assert text.startswith("rank 1 (host ")
    assert "at 'loading'" in text
    assert "rank 0 waits at 'training_step'; rank 2 waits at 'training_step'" in text
    world.close()


def test_a_single_process_is_watched_as_well() -> None:
    heard: list[str] = []
    pulse = Pulse()
    beat = Heartbeat(0, 1, pulse, Pace(0.05, 10.0, 0.3), lambda kind, text: heard.append(kind))
    beat.start()
    for step in range(20):
        pulse.mark((step, 0), "a step")
        time.sleep(0.05)
    assert not heard  # one second of short steps is no standstill
    wait_for(lambda: heard == ["stalled"])
    beat.stop()


def test_a_stranger_is_not_listened_to() -> None:
    world = World(2)
    port = world.beats[0]._listener.getsockname()[1]  # type: ignore[union-attr]
    stranger = Heartbeat(1, 2, Pulse(), PACE, lambda kind, text: None)
    stranger.start("localhost", port, "wrong")
    time.sleep(0.3)
    stranger.fail("mischief")
    time.sleep(0.3)
    assert world.heard == [[], []]
    world.close()


def test_a_rank_that_cannot_connect_is_a_problem_and_no_verdict() -> None:
    world = World(2)
    lonely = Heartbeat(1, 2, Pulse(), PACE, lambda kind, text: world.note(1, kind, text))
    lonely.start("localhost", 1, "token")
    wait_for(lambda: lonely.problem is not None)
    assert "localhost:1" in (lonely.problem or "")
    lonely.stop()
    assert world.heard == [[], []]
    world.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"stalled_after": 0}, "stalled_after=0"), ({"silent_after": 3.0}, "three times"), ({"patience": -1}, "patience")],
)
def test_bad_times_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Watchdog(**options)
