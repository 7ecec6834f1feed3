"""Heartbeats: every rank knows within seconds that another one has died, is cut off or stands still, and which one.

A collective can only say that somebody did not come. So every process has a thread that tells the one on rank 0 over a
connection of its own where its main thread is, and hears from it that all is well; rank 0 sees a connection break, or
fall silent, or a rank stay behind the others, and tells everyone its name. Nothing here takes part in the training
itself: no collective, no lock that the main thread could wait for. Nothing that a stranger sends gets here: see
:mod:`lightning_pfc.distributed.door`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning_pfc.distributed.door import Door, addresses_of, enter
from lightning_pfc.distributed.lines import Ended, Line, close_in_children
from lightning_pfc.distributed.pulse import Clock, Kind, Pace, Peer, Pulse, Report, judge

__all__ = ["Heartbeat", "Kind", "Pace", "Pulse"]

Verdict = Callable[[Kind, str], None]
_KINDS: tuple[Kind, ...] = ("died", "silent", "stalled", "failed")
_FAREWELL = 1.0  # seconds for the others to read the last line


class Heartbeat:
    """This process's part: on rank 0 the hub, on the others a connection to it.

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

    def listen(self, addresses: Sequence[str] | None = None) -> tuple[int, str]:
        """On rank 0: open a port until all others have come.

        Args:
            addresses: where the others look for rank 0, as numbers; by default those of ``localhost``.

        Returns:
            The port, and the secret that the others must know.

        Raises:
            OSError: if none of the addresses is this host's.
        """
        secret = secrets.token_hex(32)
        addresses = addresses_of("localhost") if addresses is None else addresses
        self.door = Door(addresses, secret, range(1, self.world_size), self._admit)
        self.door.open()
        return self.door.port, secret

    def connect(self, host: str, store: Any, name: str, meet: Callable[[], object]) -> None:
        """Begin on all ranks of a group; the secret goes through its store, and is taken out of it again.

        Rank 0 listens on the addresses by which the others know ``host``, and on no other.

        Args:
            host: where the others have found rank 0 already.
            store: of the process group.
            name: of this meeting, the same on all ranks, and another one each time.
            meet: a barrier, which raises on every rank if one does not come; called three times.
        """
        known = [] if self.rank == 0 else _known_addresses(host)
        store.set(f"{name}/{self.rank}", " ".join(known))
        meet()
        if self.rank == 0:
            texts = [bytes(store.get(f"{name}/{rank}")).decode() for rank in range(1, self.world_size)]
            try:
                port, secret = self.listen(list(dict.fromkeys(" ".join(texts).split())))
            except OSError as error:
                self.problem = f"rank 0 could not listen at {host}: {error}"
                port, secret = 0, ""
            store.set(name, " ".join([str(port), secret, *(self.door.addresses if self.door else ())]))
        meet()
        number, secret, *places = bytes(store.get(name)).decode().split(" ")
        meet()
        if self.rank == 0:
            store.delete_key(name)
        elif not set(known) & set(places):
            self.problem = f"rank 0 is not at {host} ({', '.join(known)}), where rank {self.rank} looked for it"
            return
        self.start(next((each for each in known if each in places), ""), int(number), secret)

    def start(self, host: str = "", port: int = 0, secret: str = "") -> None:
        """Begin; on ranks other than 0 with the address of rank 0. Returns at once, never raises."""
        for each in (self.wake, self._waker):
            close_in_children(each)
        target = _Hub(self).run if self.rank == 0 else _Spoke(self, host, port, secret).run
        self._thread = threading.Thread(target=target, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye: this rank is done, and its silence means nothing from now on."""
        self._end("")

    def fail(self, reason: str) -> None:
        """Tell the others that this rank is about to leave because of an error."""
        self._end(reason)

    def say(self, kind: Kind, text: str) -> None:
        """What is wrong; only the first time."""
        if not self.said:
            self.said = True
            self._verdict(kind, text)

    def _end(self, reason: str) -> None:
        self.failure = reason
        self.said = True  # whatever comes now concerns a process that is leaving by itself
        if self.door is not None:
            self.door.close()  # first: whom it has welcomed must be among those that the hub takes leave of
        self.stopped.set()
        self._nudge()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self.pace.interval + 2 if self.connected else 0.0)
        for each in (self.wake, self._waker):
            each.close()

    def _admit(self, rank: int, line: Line, about: Sequence[str]) -> None:
        self.arrivals.put((rank, line, about))
        self._nudge()

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")


class _Hub:
    """The thread on rank 0."""

    def __init__(self, owner: Heartbeat) -> None:
        self.owner = owner
        self.selector = selectors.DefaultSelector()
        self.lines: dict[int, Line] = {}
        self.peers = [Peer(rank) for rank in range(owner.world_size)]
        self.verdict: tuple[Kind, str] | None = None  # for those, too, who come when it was told

    def run(self) -> None:
        own = self.owner
        try:
            self.watch()
        except Exception as error:  # a fault of ours leaves a run unwatched, and does not end it
            own.problem = f"the heartbeat of rank 0 ended with {type(error).__name__}: {error}"
        if own.door is not None:
            own.door.close()  # nobody is let in whom nobody would tell anything
        self.admit(own.clock())
        self.tell(*(("verdict", "failed", f"rank 0: {own.failure}") if own.failure else ("bye",)))
        self.selector.close()
        end = time.monotonic() + _FAREWELL
        for line in self.lines.values():
            line.close(max(0.0, end - time.monotonic()))

    def watch(self) -> None:
        own, pace = self.owner, self.owner.pace
        beat = started = now = own.clock()
        self.peers[0].greet(socket.gethostname(), os.getpid(), started)
        self.selector.register(own.wake, selectors.EVENT_READ)
        while not own.stopped.is_set():
            before = now  # of the round before: a process is suspended anywhere
            ready = [key for key, _ in self.selector.select(max(0.0, beat - own.clock()))]
            now = own.clock()
            if now - before > 3 * pace.interval + 5:  # this process was suspended, and others may have been
                for peer in self.peers:
                    peer.heard = peer.moved = now
            for key in ready:
                if key.data is None:
                    _drain(own.wake)
                    self.admit(now)
                else:
                    self.read(self.peers[key.data], now)
            if now < beat:
                continue
            beat = now + pace.interval
            self.peers[0].hear(own.pulse.report(), now)
            self.tell("beat")
            if not own.said and (found := judge(self.peers, pace, now)) is not None:
                self.conclude(*found)
            if own.door is not None:
                absent = [str(peer.rank) for peer in self.peers if not peer.host]
                late = absent and now - started > pace.silent_after
                own.problem = f"rank {', '.join(absent)} could not reach rank 0" if late else None

    def admit(self, now: float) -> None:
        while not self.owner.arrivals.empty():
            rank, line, about = self.owner.arrivals.get()
            host, pid = (*about, "", "")[:2]
            self.peers[rank].greet(host or "?", int(pid) if pid.isdecimal() else 0, now)
            self.lines[rank] = line
            if self.verdict is not None:
                line.send("verdict", *self.verdict)
            if not self.owner.stopped.is_set():
                self.selector.register(line.socket, selectors.EVENT_READ, rank)

    def read(self, peer: Peer, now: float) -> None:
        line = self.lines[peer.rank]
        try:
            for fields in line.receive():
                self.hear(peer, fields, now)
        except (Ended, ValueError):
            self.selector.unregister(line.socket)
            line.socket.close()
            del self.lines[peer.rank]
            if peer.watched:
                peer.watched = False
                self.conclude("died", f"{peer} has died, last heard of at '{peer.last.place}'")

    def hear(self, peer: Peer, fields: list[str], now: float) -> None:
        match fields:
            case ["at", numbers, place, stack]:
                peer.hear(Report.parse(numbers, place, stack), now)
            case ["bye"]:
                peer.watched = False
            case ["failed", reason]:
                peer.watched = False
                self.conclude("failed", f"rank {peer.rank}: {reason}")

    def conclude(self, kind: Kind, text: str) -> None:
        if not self.owner.said:
            self.verdict = kind, text
            self.tell("verdict", kind, text)
            self.owner.say(kind, text)

    def tell(self, *fields: str) -> None:
        for line in self.lines.values():
            line.send(*fields)


class _Spoke:
    """The thread on every other rank."""

    def __init__(self, owner: Heartbeat, host: str, port: int, secret: str) -> None:
        self.owner, self.host, self.port, self.secret = owner, host, port, secret
        self.heard = 0.0

    def run(self) -> None:
        own = self.owner
        line = self.connect()
        if line is None:
            return
        try:
            self.watch(line)
        except Exception as error:
            own.problem = f"the heartbeat of rank {own.rank} ended with {type(error).__name__}: {error}"
        line.send(*(("failed", own.failure) if own.failure else ("bye",)))
        line.close(_FAREWELL)

    def connect(self) -> Line | None:
        """Try until it works or is not wanted any more: the port may be busy with strangers."""
        own, line = self.owner, None
        while line is None and not own.stopped.is_set():
            try:
                line = enter(self.host, self.port, self.secret, own.rank, (socket.gethostname(), os.getpid()), 1.0)
            except OSError as error:  # noqa: PERF203
                own.problem = f"rank 0 cannot be reached at {self.host}:{self.port} ({error})"
                own.stopped.wait(0.1)
        if line is not None:
            own.problem, own.connected = None, True
        return line

    def watch(self, line: Line) -> None:
        own, pace = self.owner, self.owner.pace
        rank0 = f"rank 0 ({self.host})"
        with selectors.DefaultSelector() as selector:
            selector.register(own.wake, selectors.EVENT_READ)
            selector.register(line.socket, selectors.EVENT_READ, line)
            self.heard = beat = now = own.clock()
            self.hear(line, self.heard)
            while not own.stopped.is_set():
                before = now
                ready = [key.data for key, _ in selector.select(max(0.0, beat - own.clock()))]
                now = own.clock()
                if now - before > 3 * pace.interval + 5:
                    self.heard = now
                try:
                    if line in ready:
                        self.hear(line, now)
                except Ended:
                    own.say("died", f"{rank0} has died")
                    return
                if now < beat:
                    continue
                beat = now + pace.interval
                line.send("at", *own.pulse.report().fields())
                if now - self.heard > pace.silent_after:
                    text = f"no sign of {rank0} for {pace.silent_after:g} s: frozen, or the network to it is cut"
                    own.say("silent", text)
                    return

    def hear(self, line: Line, now: float) -> None:
        for fields in line.receive():
            self.heard = now
            match fields:
                case ["verdict", kind, text]:
                    self.owner.say(next((each for each in _KINDS if each == kind), "failed"), text)
                case ["bye"]:
                    self.owner.said = True
                    self.owner.stopped.set()


def _known_addresses(host: str) -> list[str]:
    try:
        return addresses_of(host)
    except OSError:
        return []


def _drain(wake: socket.socket) -> None:
    with contextlib.suppress(OSError):
        wake.recv(4096)
