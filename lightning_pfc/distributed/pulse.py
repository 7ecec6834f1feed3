"""Where a process is: what its main thread notes, what is sent of it, and who is judged by it to have failed."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["died", "silent", "stalled", "failed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Clock = Callable[[], float]
Key = tuple[int, int]


@dataclass(frozen=True)
class Pace:
    """How often, and how long, in seconds.

    Attributes:
        interval: between two heartbeats of a rank.
        silent_after: without any sign of life, a rank counts as frozen or cut off.
        stalled_after: without any progress of its main thread, the rank that is furthest behind counts as stuck.
    """

    interval: float = 2.0
    silent_after: float = 60.0
    stalled_after: float = 1800.0


@dataclass(frozen=True)
class Report:
    """What a rank says of itself: how many notes there were, the last one, its age in seconds, and where that is."""

    serial: int = -1
    key: Key = (0, 0)
    place: str = "the start"
    age: float = 0.0
    stack: str = ""

    def fields(self) -> list[str]:
        """As it is sent."""
        return [f"{self.serial} {self.key[0]} {self.key[1]} {self.age:.3f}", self.place, self.stack]

    @staticmethod
    def parse(numbers: str, place: str, stack: str) -> Report:
        """The opposite.

        Raises:
            ValueError: if ``numbers`` are none.
        """
        serial, step, stage, age = numbers.split(" ")
        if not 0 <= float(age) < math.inf:
            raise ValueError(f"age={age!r} is no time.")
        return Report(int(serial), (int(step), int(stage)), place, float(age), stack)


class Pulse:
    """Where the main thread is; marked by it at no cost, read by the heartbeat."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._mark: tuple[int, Key, str, float] = (0, (0, 0), "the start", clock())
        self._thread = threading.main_thread().ident or 0

    def mark(self, key: Key, place: str) -> None:
        """Say what comes next.

        Args:
            key: (step, stage within the step); grows, and is the same on every rank at the same place.
            place: the same in words.
        """
        self._mark = (self._mark[0] + 1, key, place, self._clock())

    def report(self) -> Report:
        """What is sent."""
        serial, key, place, since = self._mark
        age = max(0.0, self._clock() - since)
        return Report(serial, key, place, age, self._stack() if age > 0.5 else "")

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread)
        lines = [f"{os.path.basename(s.filename)}:{s.lineno} {s.name}" for s in traceback.extract_stack(frame, 200)]
        return " < ".join(reversed(lines[-4:])) if frame is not None else ""


@dataclass
class Peer:
    """A rank as rank 0 sees it; times are those of rank 0's clock."""

    rank: int
    host: str = ""
    pid: int = 0
    heard: float = 0.0
    moved: float = 0.0
    last: Report = Report()
    watched: bool = False  # said hello, and not yet goodbye

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"

    def greet(self, host: str, pid: int, now: float) -> None:
        """It has come."""
        self.host, self.pid, self.watched = host, pid, True
        self.heard = self.moved = now

    def hear(self, report: Report, now: float) -> None:
        """It has said where it is.

        A move that was not yet told is later than what was heard last, however old it says that it is: a process that
        was suspended counts that time, too.
        """
        if report.serial != self.last.serial:
            self.moved = max(self.heard, now - report.age)
        self.heard = now
        self.last = report


def judge(peers: Sequence[Peer], pace: Pace, now: float) -> tuple[Kind, str] | None:
    """What is wrong with the ranks that are watched, and with which, if anything is."""
    watched = [peer for peer in peers if peer.watched]
    silent = [peer for peer in watched if peer.rank and now - peer.heard > pace.silent_after]
    if silent:
        names = ", ".join(map(str, silent))
        return "silent", f"no sign of {names} for {pace.silent_after:g} s: frozen, or its network is cut"
    if any(now - peer.moved > pace.stalled_after for peer in watched):
        return "stalled", _who_is_stuck(watched, now)
    return None


def _who_is_stuck(peers: Sequence[Peer], now: float) -> str:
    """Those that are behind all others are what the others wait for."""
    least = min(peer.last.key for peer in peers)
    behind = [peer for peer in peers if peer.last.key == least]
    others = [peer for peer in peers if peer.last.key != least]
    parts = [
        f"{peer} has not moved for {now - peer.moved:.0f} s at '{peer.last.place}' ({peer.last.stack})"
        for peer in behind
    ]
    if others:
        parts.append("; ".join(f"rank {peer.rank} waits at '{peer.last.place}'" for peer in others))
    elif len(behind) > 1:
        parts.append("all ranks are at the same place: the stacks below tell which of them waits for which")
    return "; ".join(parts)
