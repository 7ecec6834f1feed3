"""Heartbeats between threads of one process: what is found out, and what is not mistaken for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lightning_pfc.callbacks import Watchdog
from lightning_pfc.distributed.heartbeat import Heartbeat, Pace, Pulse
from lightning_pfc.distributed.lines import Line
from lightning_pfc.distributed.pulse import Peer, Report, judge

PACE = Pace(interval=0.05, silent_after=60.0, stalled_after=1800.0)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: dict[int, int] = {}

    def __call__(self) -> float:
        thread = threading.get_ident()
        self.asked[thread] = self.asked.get(thread, 0) + 1
        return self.now

    def advance(self, seconds: float) -> None:
        """Go on, and wait until every thread with a beat has seen it: its loop asks twice in a round."""
        before = dict(self.asked)
        beating = [each for each in threading.enumerate() if each.name == "heartbeat" and each.ident in before]
        self.now += seconds
        wait_for(lambda: all(self.asked[t.ident] > before[t.ident] + 4 or not t.is_alive() for t in beating))


class World:
    """Hub and spokes, each with the verdicts that it has heard."""

    def __init__(self, size: int, pace: Pace = PACE) -> None:
        self.clock = Clock()
        self.heard: list[list[tuple[str, str]]] = [[] for _ in range(size)]
        self.pulses = [Pulse(self.clock) for _ in range(size)]
        self.beats = [self.make(rank, size, pace) for rank in range(size)]
        port, secret = self.beats[0].listen()
        for beat in self.beats:
            beat.start("localhost", port, secret)
        wait_for(lambda: all(beat.connected for beat in self.beats))

    def make(self, rank: int, size: int, pace: Pace) -> Heartbeat:
        def note(kind: str, text: str) -> None:
            self.heard[rank].append((kind, text))

        return Heartbeat(rank, size, self.pulses[rank], pace, note, self.clock)

    def pass_time(self, seconds: float) -> None:
        """In steps that no thread takes for a suspension; each beats once in every one."""
        while seconds > 0:
            step = min(5.0, seconds)
            seconds -= step
            self.clock.advance(step)

    def wait(self, ranks: list[int]) -> None:
        wait_for(lambda: all(self.heard[rank] for rank in ranks))

    def close(self) -> None:
        for beat in self.beats:
            beat.stop()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def peers(*reports: Report, heard: float = 100.0, moved: float = 100.0) -> list[Peer]:
    return [Peer(rank, "h", rank, heard, moved, report, True) for rank, report in enumerate(reports)]


def test_a_rank_is_silent_when_it_was_not_heard_for_longer_than_agreed() -> None:
    ranks = peers(Report(), Report(), Report())
    assert judge(ranks, PACE, 160.0) is None
    ranks[1].heard, ranks[0].heard = 99.0, 0.0  # rank 0 judges, and is not heard
    kind, text = judge(ranks, PACE, 160.0) or ("", "")
    assert (kind, text[:36]) == ("silent", "no sign of rank 1 (host h, process 1")
    ranks[1].watched = False
    assert judge(ranks, PACE, 160.0) is None


def test_the_rank_that_is_behind_is_the_one_that_is_stuck() -> None:
    ranks = peers(Report(7, (8, 0), "training_step"), Report(6, (7, 2), "loading", 1.0, "data.py:1"), Report(7, (8, 0)))
    for peer in ranks:
        peer.heard = 1950.0
    assert judge(ranks, PACE, 1900.0) is None
    kind, text = judge(ranks, PACE, 1901.0) or ("", "")
    assert kind == "stalled"
    assert text.startswith("rank 1 (host h, process 1) has not moved for 1801 s at 'loading' (data.py:1)")
    assert "rank 0 waits at 'training_step'; rank 2 waits at 'the start'" in text


def test_progress_is_what_counts_and_not_the_number_of_reports() -> None:
    peer = Peer(1, "h", 1, watched=True)
    peer.hear(Report(1, (1, 0), "a", age=2.0), 50.0)
    assert (peer.heard, peer.moved) == (50.0, 48.0)
    peer.hear(Report(1, (1, 0), "a", age=12.0), 60.0)
    assert (peer.heard, peer.moved) == (60.0, 48.0)


def test_a_move_that_a_suspension_kept_back_is_not_as_old_as_it_says() -> None:
    peer = Peer(1, "h", 1)
    peer.greet("h", 1, 100.0)
    peer.hear(Report(0, age=7205.0), 7210.0)  # its first report; the hub saw the suspension only after this
    assert peer.moved == 100.0
    peer.heard = peer.moved = 7210.0  # now it has seen it
    peer.hear(Report(1, (1, 0), "a", age=7204.0), 7211.0)
    assert peer.moved == 7210.0
    assert judge([peer], PACE, 7212.0) is None


@pytest.mark.parametrize("numbers", ["", "1", "1 2 3 x", "1 2 3 nan", "1 2 3 inf", "1 2 3 -1", "[[[[", "1 2 3 4 5"])
def test_a_report_that_is_none_is_refused(numbers: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Report.parse(numbers, "", "")


def test_a_report_travels_whole() -> None:
    report = Report(3, (4, 1), "backward of batch 4", 2.5, "a.py:1 f < b.py:2 g")
    assert Report.parse(*report.fields()) == report


def test_all_is_well_when_all_say_goodbye() -> None:
    world = World(3)
    for order in (2, 0, 1):  # rank 0 goes before one of the others
        world.beats[order].stop()
    assert world.heard == [[], [], []]
    assert not any(thread.name in ("heartbeat", "door") for thread in threading.enumerate())


def test_an_error_is_told_with_the_rank() -> None:
    world = World(3)
    world.beats[2].fail("KeyError: 'x'\n\tat y")
    world.wait([0, 1])
    assert world.heard[0] == world.heard[1] == [("failed", "rank 2: KeyError: 'x'  at y")]
    world.close()


def test_an_error_on_rank_0_is_told_before_it_goes() -> None:
    world = World(3)
    world.beats[0].fail("OSError: disk")
    world.wait([1, 2])
    assert world.heard[1] == world.heard[2] == [("failed", "rank 0: OSError: disk")]
    world.close()


def test_who_was_just_let_in_is_told_why_rank_0_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    welcomed, going = threading.Event(), threading.Event()
    admit = Heartbeat._admit

    def hesitate(beat: Heartbeat, rank: int, line: Line, about: Sequence[str]) -> None:
        welcomed.set()
        going.wait(0.2)  # rank 0 ends meanwhile, if it does not wait for this
        admit(beat, rank, line, about)

    monkeypatch.setattr(Heartbeat, "_admit", hesitate)
    world = World(2)
    assert welcomed.wait(60.0)
    world.beats[0].fail("OSError: disk")
    going.set()
    world.wait([1])
    assert world.heard[1] == [("failed", "rank 0: OSError: disk")]
    world.close()


def test_who_comes_after_a_verdict_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    admit, late = Heartbeat._admit, list[Any]()

    def keep(beat: Heartbeat, *about: Any) -> None:
        admit(beat, *about) if about[0] == 1 else late.append((beat, *about))

    monkeypatch.setattr(Heartbeat, "_admit", keep)
    world = World(3)
    world.beats[1].fail("OSError: disk")
    world.wait([0])
    wait_for(lambda: bool(late))
    admit(*late[0])
    world.wait([2])
    assert world.heard[2] == [("failed", "rank 1: OSError: disk")]
    world.close()


def test_all_ranks_hear_of_one_that_stands_still() -> None:
    world = World(3, Pace(interval=0.05, silent_after=600.0, stalled_after=20.0))
    for rank, pulse in enumerate(world.pulses):
        pulse.mark((7, 2) if rank == 1 else (8, 0), "loading" if rank == 1 else "training_step")
    world.pass_time(21.0)
    world.wait([0, 1, 2])
    kind, text = world.heard[2][0]
    assert kind == "stalled"
    assert text.startswith("rank 1 (host ")
    assert "at 'loading'" in text
    assert "rank 0 waits at 'training_step'; rank 2 waits at 'training_step'" in text
    world.close()


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_a_process_that_was_suspended_blames_nobody(told: bool, marked: bool) -> None:
    world = World(2)
    if told:  # each has reported where it is before
        world.pass_time(5.0)
    if marked:  # and moved since
        for pulse in world.pulses:
            pulse.mark((1, 0), "training_step")
    world.clock.now += 7200.0
    world.pass_time(10.0)
    assert world.heard == [[], []]
    world.close()


def test_a_single_process_is_watched_as_well() -> None:
    heard: list[str] = []
    clock = Clock()
    pulse = Pulse(clock)
    beat = Heartbeat(0, 1, pulse, Pace(0.02, 100.0, 10.0), lambda kind, text: heard.append(kind), clock)
    beat.start()
    for step in range(5):
        pulse.mark((step, 0), "a step")
        clock.advance(4.0)
    assert not heard  # twenty seconds of short steps are no standstill
    for _ in range(3):
        clock.advance(4.9)
    wait_for(lambda: heard == ["stalled"])
    beat.stop()


def test_a_rank_that_cannot_connect_is_a_problem_and_no_verdict() -> None:
    world = World(2)
    lonely = world.make(1, 2, Pace(interval=60.0))
    lonely.start("localhost", 1, "secret")
    wait_for(lambda: lonely.problem is not None)
    assert "localhost:1" in (lonely.problem or "")
    started = time.monotonic()
    lonely.stop()
    assert time.monotonic() - started < 30.0  # it does not hold the run up at its end
    assert world.heard == [[], []]
    world.close()


def test_a_fault_of_the_hub_leaves_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2)
    monkeypatch.setattr("lightning_pfc.distributed.hub.judge", lambda *args: 1 / 0)
    world.clock.now += 1.0
    wait_for(lambda: world.beats[0].problem is not None)
    assert "ZeroDivisionError" in (world.beats[0].problem or "")
    wait_for(lambda: world.beats[1].stopped.is_set())  # it was told goodbye
    assert world.heard == [[], []]
    world.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"stalled_after": 0}, "stalled_after=0"), ({"silent_after": 3.0}, "three times"), ({"patience": -1}, "patience")],
)
def test_bad_times_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Watchdog(**options)
