"""Heartbeats on every rank but 0: tells rank 0 where this process is, and hears from it that all is well."""

from __future__ import annotations

import os
import selectors
import socket

from lightning_pfc.distributed.door import enter
from lightning_pfc.distributed.lines import FAREWELL, Ended, Line
from lightning_pfc.distributed.pulse import KINDS
from lightning_pfc.distributed.watched import Watched


class Spoke:
    """The thread on every other rank.

    Args:
        owner: this process's part.
        host, port, secret: of the door on rank 0.
    """

    def __init__(self, owner: Watched, host: str, port: int, secret: str) -> None:
        self._owner, self._host, self._port, self._secret = owner, host, port, secret
        self._heard = 0.0

    def run(self) -> None:
        """Find rank 0, watch until this process leaves or rank 0 is gone, then say goodbye, or why it goes."""
        own = self._owner
        line = self._connect()
        if line is None:
            return
        try:
            self._watch(line)
        except Exception as error:
            own.problem = f"the heartbeat of rank {own.rank} ended with {type(error).__name__}: {error}"
        line.send(*(("failed", own.failure) if own.failure else ("bye",)))
        line.close(FAREWELL)

    def _connect(self) -> Line | None:
        """Try until it works or is not wanted any more: the port may be busy with strangers."""
        own, line = self._owner, None
        while line is None and not own.stopped.is_set():
            try:
                line = enter(self._host, self._port, self._secret, own.rank, (socket.gethostname(), os.getpid()), 1.0)
            except OSError as error:  # noqa: PERF203
                own.problem = f"rank 0 cannot be reached at {self._host}:{self._port} ({error})"
                own.stopped.wait(0.1)
        if line is not None:
            own.problem, own.connected = None, True
        return line

    def _watch(self, line: Line) -> None:
        own, pace = self._owner, self._owner.pace
        rank0 = f"rank 0 ({self._host})"
        with selectors.DefaultSelector() as selector:
            selector.register(own.wake, selectors.EVENT_READ)
            selector.register(line.socket, selectors.EVENT_READ, line)
            self._heard = beat = now = own.clock()
            self._hear(line, self._heard)
            while not own.stopped.is_set():
                before = now
                ready = [key.data for key, _ in selector.select(max(0.0, beat - own.clock()))]
                now = own.clock()
                if now - before > 3 * pace.interval + 5:
                    self._heard = now
                try:
                    if line in ready:
                        self._hear(line, now)
                except Ended:
                    own.say("died", f"{rank0} has died")
                    return
                if now < beat:
                    continue
                beat = now + pace.interval
                line.send("at", *own.pulse.report().fields())
                if now - self._heard > pace.silent_after:
                    text = f"no sign of {rank0} for {pace.silent_after:g} s: frozen, or the network to it is cut"
                    own.say("silent", text)
                    return

    def _hear(self, line: Line, now: float) -> None:
        for fields in line.receive():
            self._heard = now
            match fields:
                case ["verdict", kind, text]:
                    self._owner.say(next((each for each in KINDS if each == kind), "failed"), text)
                case ["bye"]:
                    self._owner.said = True
                    self._owner.stopped.set()
