"""What the main thread of a process and the thread of its heartbeat both know of it."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from lightning_pfc.distributed.door import Door
from lightning_pfc.distributed.lines import Line
from lightning_pfc.distributed.pulse import Clock, Kind, Pace, Pulse

Verdict = Callable[[Kind, str], None]


class Watched:
    """This process, and what is wrong.

    Args:
        rank, world_size: of this process.
        pulse: where its main thread is.
        pace: how often and how long.
        verdict: called once, in a thread, with the kind and the text of what is wrong; the same text on all ranks that
            can be reached.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        pulse: Pulse,
        pace: Pace,
        verdict: Verdict,
        clock: Clock = time.monotonic,
    ) -> None:
        self.rank, self.world_size, self.pulse, self.pace, self.clock = rank, world_size, pulse, pace, clock
        self._verdict = verdict
        self.failure = ""
        self.said = False
        self.problem: str | None = None
        """Why not every rank is watched, if so."""
        self.door: Door | None = None
        self.arrivals: queue.SimpleQueue[tuple[int, Line, Sequence[str]]] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.connected = rank == 0
        self.wake, self._waker = socket.socketpair()
        self.wake.setblocking(False)
        self._thread: threading.Thread | None = None

    def say(self, kind: Kind, text: str) -> None:
        """What is wrong; only the first time."""
        if not self.said:
            self.said = True
            self._verdict(kind, text)
