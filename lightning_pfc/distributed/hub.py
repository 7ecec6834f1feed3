"""Heartbeats on rank 0: hears where every rank is, finds out which has failed, and tells all of them."""

from __future__ import annotations

import os
import selectors
import socket
import time

from lightning_pfc.distributed.lines import FAREWELL, Ended, Line, drain
from lightning_pfc.distributed.pulse import Kind, Peer, Report, judge
from lightning_pfc.distributed.watched import Watched


class Hub:
    """The thread on rank 0.

    Args:
        owner: this process's part, whose door lets the others in.
    """

    def __init__(self, owner: Watched) -> None:
        self._owner = owner
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, Line] = {}
        self._peers = [Peer(rank) for rank in range(owner.world_size)]
        self._verdict: tuple[Kind, str] | None = None  # for those, too, who come when it was told

    def run(self) -> None:
        """Watch until this process leaves, then say goodbye, or why it goes."""
        own = self._owner
        try:
            self._watch()
        except Exception as error:  # a fault of ours leaves a run unwatched, and does not end it
            own.problem = f"the heartbeat of rank 0 ended with {type(error).__name__}: {error}"
        if own.door is not None:
            own.door.close()  # nobody is let in whom nobody would tell anything
        self._admit(own.clock())
        self._tell(*(("verdict", "failed", f"rank 0: {own.failure}") if own.failure else ("bye",)))
        self._selector.close()
        end = time.monotonic() + FAREWELL
        for line in self._lines.values():
            line.close(max(0.0, end - time.monotonic()))

    def _watch(self) -> None:
        own, pace = self._owner, self._owner.pace
        beat = started = now = own.clock()
        self._peers[0].greet(socket.gethostname(), os.getpid(), started)
        self._selector.register(own.wake, selectors.EVENT_READ)
        while not own.stopped.is_set():
            before = now  # of the round before: a process is suspended anywhere
            ready = [key for key, _ in self._selector.select(max(0.0, beat - own.clock()))]
            now = own.clock()
            if now - before > 3 * pace.interval + 5:  # this process was suspended, and others may have been
                for peer in self._peers:
                    peer.heard = peer.moved = now
            for key in ready:
                if key.data is None:
                    drain(own.wake)
                    self._admit(now)
                else:
                    self._read(self._peers[key.data], now)
            if now < beat:
                continue
            beat = now + pace.interval
            self._peers[0].hear(own.pulse.report(), now)
            self._tell("beat")
            if not own.said and (found := judge(self._peers, pace, now)) is not None:
                self._conclude(*found)
            if own.door is not None:
                absent = [str(peer.rank) for peer in self._peers if not peer.host]
                late = absent and now - started > pace.silent_after
                own.problem = f"rank {', '.join(absent)} could not reach rank 0" if late else None

    def _admit(self, now: float) -> None:
        """Whom the door has let in since."""
        while not self._owner.arrivals.empty():
            rank, line, about = self._owner.arrivals.get()
            host, pid = (*about, "", "")[:2]
            self._peers[rank].greet(host or "?", int(pid) if pid.isdecimal() else 0, now)
            self._lines[rank] = line
            if self._verdict is not None:
                line.send("verdict", *self._verdict)
            if not self._owner.stopped.is_set():
                self._selector.register(line.socket, selectors.EVENT_READ, rank)

    def _read(self, peer: Peer, now: float) -> None:
        line = self._lines[peer.rank]
        try:
            for fields in line.receive():
                self._hear(peer, fields, now)
        except (Ended, ValueError):
            self._selector.unregister(line.socket)
            line.socket.close()
            del self._lines[peer.rank]
            if peer.watched:
                peer.watched = False
                self._conclude("died", f"{peer} has died, last heard of at '{peer.last.place}'")

    def _hear(self, peer: Peer, fields: list[str], now: float) -> None:
        match fields:
            case ["at", numbers, place, stack]:
                peer.hear(Report.parse(numbers, place, stack), now)
            case ["bye"]:
                peer.watched = False
            case ["failed", reason]:
                peer.watched = False
                self._conclude("failed", f"rank {peer.rank}: {reason}")

    def _conclude(self, kind: Kind, text: str) -> None:
        if not self._owner.said:
            self._verdict = kind, text
            self._tell("verdict", kind, text)
            self._owner.say(kind, text)

    def _tell(self, *fields: str) -> None:
        for line in self._lines.values():
            line.send(*fields)
