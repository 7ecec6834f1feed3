"""Heartbeats: every rank knows within seconds that another one has died, is cut off or stands still, and which one.

A collective can only say that somebody did not come. So every process has a thread that tells the one on rank 0 over a
connection of its own where its main thread is, and hears from it that all is well; rank 0 sees a connection break, or
fall silent, or a rank stay behind the others, and tells everyone its name. Nothing here takes part in the training
itself: no collective, no lock that the main thread could wait for.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["died", "silent", "stalled", "failed"]
Verdict = Callable[[Kind, str], None]
_LONGEST = 1 << 16  # bytes of a message; more is not from us

_open_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_child() -> None:
    for each in list(_open_sockets):
        each.close()


if hasattr(os, "register_at_fork"):
    # A data loader's worker must not hold the connection of a process that has died.
    os.register_at_fork(after_in_child=_close_in_child)


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


class Pulse:
    """Where the main thread is; marked by it at no cost, read by the heartbeat."""

    def __init__(self) -> None:
        self._mark: tuple[int, tuple[int, int], str, float] = (0, (0, 0), "the start", time.monotonic())
        self._thread = threading.main_thread().ident or 0

    def mark(self, key: tuple[int, int], place: str) -> None:
        """Say what comes next.

        Args:
            key: (step, stage within the step); grows, and is the same on every rank at the same place.
            place: the same in words.
        """
        self._mark = (self._mark[0] + 1, key, place, time.monotonic())

    def report(self) -> dict[str, Any]:
        """What is sent."""
        serial, key, place, since = self._mark
        age = time.monotonic() - since
        return {"serial": serial, "key": key, "place": place, "age": age, "at": self._stack() if age > 0.5 else ""}

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread)
        lines = [f"{os.path.basename(s.filename)}:{s.lineno} {s.name}" for s in traceback.extract_stack(frame, 200)]
        return " < ".join(reversed(lines[-4:])) if frame is not None else ""


@dataclass
class _Peer:
    rank: int
    host: str = ""
    pid: int = 0
    heard: float = 0.0
    moved: float = 0.0
    serial: int = -1
    key: tuple[int, int] = (0, 0)
    place: str = "the start"
    at: str = ""
    watched: bool = False  # said hello, and not yet goodbye

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"

    def update(self, report: dict[str, Any], now: float) -> None:
        self.heard = now
        if "serial" not in report:
            return
        if report["serial"] != self.serial:
            self.moved = now - min(float(report["age"]), now)
        self.serial, self.key = int(report["serial"]), (int(report["key"][0]), int(report["key"][1]))
        self.place, self.at = str(report["place"]), str(report["at"])


class Heartbeat:
    """This process's part: on rank 0 the hub, on the others a connection to it.

    Args:
        rank, world_size: of this process.
        pulse: where its main thread is.
        pace: how often and how long.
        verdict: called once, in a thread, with the kind and the text of what is wrong; the same text on all ranks that
            can be reached.

    Attributes:
        address: on rank 0, port and token for the others, to be handed to their :meth:`start`.
    """

    def __init__(self, rank: int, world_size: int, pulse: Pulse, pace: Pace, verdict: Verdict) -> None:
        self.rank, self.world_size, self.pulse, self.pace = rank, world_size, pulse, pace
        self._verdict = verdict
        self._said = False
        self._failure = ""
        self._stop = threading.Event()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._token = ""
        self._problem: str | None = None

    def listen(self) -> tuple[int, str]:
        """On rank 0: open a port; returns it, with the token that the others must show."""
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6)
        self._listener.setblocking(False)
        self._token = secrets.token_hex(16)
        _open_sockets.add(self._listener)
        return int(self._listener.getsockname()[1]), self._token

    def start(self, host: str = "", port: int = 0, token: str = "") -> None:
        """Begin; on ranks other than 0 with the address of rank 0. Returns at once, never raises."""
        _open_sockets.update((self._wake, self._waker))
        target = _Hub(self).run if self.rank == 0 else _Spoke(self, host, port, token).run
        self._thread = threading.Thread(target=target, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why this rank is not watched, if it is not."""
        return self._problem

    def stop(self) -> None:
        """Say goodbye: this rank is done, and its silence means nothing from now on."""
        self._end("")

    def fail(self, reason: str) -> None:
        """Tell the others that this rank is about to leave because of an error."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._failure = reason
        self._said = True  # whatever comes now concerns a process that is leaving by itself
        self._stop.set()
        with contextlib.suppress(OSError):
            self._waker.send(b"x")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self.pace.interval + 2)
        for each in (self._wake, self._waker, self._listener):
            if each is not None:
                each.close()

    def _say(self, kind: Kind, text: str) -> None:
        if not self._said:
            self._said = True
            self._verdict(kind, text)


class _Line:
    """A connection that carries one JSON object per line, and never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.peer: _Peer | None = None
        self._buffer = b""
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _open_sockets.add(connection)

    def send(self, message: dict[str, Any]) -> None:
        # A full buffer or a broken line shows itself as silence or as an end when reading.
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come; None at the end of the connection."""
        ended = False
        try:
            while chunk := self.socket.recv(_LONGEST):
                self._buffer += chunk
            ended = True
        except BlockingIOError:
            pass
        except OSError:
            ended = True
        *lines, self._buffer = self._buffer.split(b"\n")
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    messages.append(message)
        if len(self._buffer) > _LONGEST or (ended and not messages):
            return None
        return messages

    def close(self) -> None:
        """End the connection when the other side has read everything: a plain close could take back what was sent."""
        deadline = time.monotonic() + 1.0
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(_LONGEST):
                    break
        self.socket.close()


class _Hub:
    """The thread on rank 0."""

    def __init__(self, owner: Heartbeat) -> None:
        self.owner = owner
        self.selector = selectors.DefaultSelector()
        self.lines: list[_Line] = []
        self.peers = [_Peer(rank) for rank in range(owner.world_size)]

    def run(self) -> None:
        own, pace = self.owner, self.owner.pace
        now = started = time.monotonic()
        me = self.peers[0]
        me.host, me.pid, me.watched, me.heard, me.moved = socket.gethostname(), os.getpid(), True, now, now
        self.selector.register(own._wake, selectors.EVENT_READ)
        if own._listener is not None:
            self.selector.register(own._listener, selectors.EVENT_READ)
        beat = now
        while not own._stop.is_set():
            before = time.monotonic()
            ready = [key for key, _ in self.selector.select(max(0.0, beat - before))]
            now = time.monotonic()
            if now - before > 3 * pace.interval + 5:  # this process was suspended, and others may have been
                for peer in self.peers:
                    peer.heard = peer.moved = now
            for key in ready:
                if key.fileobj is own._listener:
                    self.accept()
                elif key.data is not None:
                    self.read(key.data, now)
            if now < beat:
                continue
            beat = now + pace.interval
            me.update(own.pulse.report(), now)
            self.tell({"beat": 1})
            if not own._said:
                self.judge(now)
            if now - started > pace.silent_after and own._problem is None:
                absent = [str(peer.rank) for peer in self.peers if not peer.host]
                own._problem = f"rank {', '.join(absent)} could not reach rank 0" if absent else None
        message = {"verdict": "failed", "text": f"rank 0: {own._failure}"} if own._failure else {"bye": 1}
        self.tell(message)
        self.selector.close()
        for line in self.lines:
            line.close()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            assert self.owner._listener is not None
            line = _Line(self.owner._listener.accept()[0])
            self.lines.append(line)
            self.selector.register(line.socket, selectors.EVENT_READ, line)

    def read(self, line: _Line, now: float) -> None:
        messages = line.receive()
        for message in messages or ():
            if line.peer is None:
                if message.get("hello") != self.owner._token:
                    messages = None
                    break
                line.peer = peer = self.peers[int(message["rank"])]
                peer.host, peer.pid, peer.watched = str(message["host"]), int(message["pid"]), True
                peer.heard = peer.moved = now
            elif "bye" in message:
                line.peer.watched = False
            elif "failed" in message:
                line.peer.watched = False
                self.conclude("failed", f"rank {line.peer.rank}: {message['failed']}")
            else:
                line.peer.update(message, now)
        if messages is None:
            self.selector.unregister(line.socket)
            line.socket.close()
            self.lines.remove(line)
            if line.peer is not None and line.peer.watched:
                line.peer.watched = False
                self.conclude("died", f"{line.peer} has died, last heard of at '{line.peer.place}'")

    def judge(self, now: float) -> None:
        pace = self.owner.pace
        watched = [peer for peer in self.peers if peer.watched]
        silent = [peer for peer in watched if peer.rank and now - peer.heard > pace.silent_after]
        if silent:
            names = ", ".join(map(str, silent))
            self.conclude("silent", f"no sign of {names} for {pace.silent_after:g} s: frozen, or its network is cut")
            return
        stuck = [peer for peer in watched if now - peer.moved > pace.stalled_after]
        if stuck:
            self.conclude("stalled", _who_is_stuck(watched, now))

    def conclude(self, kind: Kind, text: str) -> None:
        if not self.owner._said:
            self.tell({"verdict": kind, "text": text})
            self.owner._say(kind, text)

    def tell(self, message: dict[str, Any]) -> None:
        for line in self.lines:
            line.send(message)


def _who_is_stuck(peers: Sequence[_Peer], now: float) -> str:
    """Those that are behind all others are what the others wait for."""
    least = min(peer.key for peer in peers)
    behind = [peer for peer in peers if peer.key == least]
    others = [peer for peer in peers if peer.key != least]
    parts = [f"{peer} has not moved for {now - peer.moved:.0f} s at '{peer.place}' ({peer.at})" for peer in behind]
    if others:
        parts.append("; ".join(f"rank {peer.rank} waits at '{peer.place}'" for peer in others))
    elif len(behind) > 1:
        parts.append("all ranks are at the same place: the stacks below tell which of them waits for which")
    return "; ".join(parts)


class _Spoke:
    """The thread on every other rank."""

    def __init__(self, owner: Heartbeat, host: str, port: int, token: str) -> None:
        self.owner, self.host, self.port, self.token = owner, host, port, token

    def run(self) -> None:
        own, pace = self.owner, self.owner.pace
        try:
            connection = socket.create_connection((self.host, self.port), timeout=pace.silent_after)
        except OSError as error:
            own._problem = f"rank 0 cannot be reached at {self.host}:{self.port} ({error})"
            return
        line = _Line(connection)
        line.send({"hello": self.token, "rank": own.rank, "host": socket.gethostname(), "pid": os.getpid()})
        selector = selectors.DefaultSelector()
        selector.register(own._wake, selectors.EVENT_READ)
        selector.register(connection, selectors.EVENT_READ, line)
        heard = beat = time.monotonic()
        rank0 = f"rank 0 ({self.host})"
        while not own._stop.is_set():
            before = time.monotonic()
            ready = [key for key, _ in selector.select(max(0.0, beat - before))]
            now = time.monotonic()
            if now - before > 3 * pace.interval + 5:
                heard = now
            if any(key.data is line for key in ready):
                messages = line.receive()
                heard = now
                for message in messages or ():
                    if "verdict" in message:
                        own._say(message["verdict"], str(message["text"]))
                    elif "bye" in message:
                        own._said = True
                        own._stop.set()
                if messages is None:
                    own._say("died", f"{rank0} has died")
                    break
            if now >= beat:
                beat = now + pace.interval
                line.send(own.pulse.report())
                if now - heard > pace.silent_after:
                    text = f"no sign of {rank0} for {pace.silent_after:g} s: frozen, or the network to it is cut"
                    own._say("silent", text)
                    break
        line.send({"failed": own._failure} if own._failure else {"bye": 1})
        selector.close()
        line.close()
