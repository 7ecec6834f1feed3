"""The tasks of a SLURM step meet before there is a process group: all come, or all hear who has not.

Rank 0 opens a :class:`~lightning_pfc.distributed.door.Door`. The others keep their connections until everyone is there,
so that each of them can say whom it waits for, and ends with the same words.
"""

from __future__ import annotations

import datetime as dt
import getpass
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from lightning_pfc.distributed.door import Door, addresses_of, enter
from lightning_pfc.distributed.jobs import host_of_rank, step_rank, step_size
from lightning_pfc.distributed.lines import Ended, Line
from lightning_pfc.distributed.ports import PORT_VARIABLE, step_ports
from lightning_pfc.processes.launching import say, saying_what_it_waits_for

SECRET_VARIABLE = "PFC_SECRET"
TIMEOUT = dt.timedelta(minutes=5)
_EVERY, _GRACE, _NAMED = 2.0, 30.0, 8  # seconds between words to those that wait, and more for the last; ranks by name
_calls: Counter[str] = Counter()
_last_port: list[int] = []  # of the last time, tried first: each port that is a stranger's costs seconds


@dataclass(frozen=True)
class _Place:
    what: str
    host: str
    secret: str
    ports: Sequence[int]

    def __str__(self) -> str:
        return f"{self.host}, port {min(self.ports)} to {max(self.ports)}"


def agree_in_step(what: str, choose: Callable[[], str], host: str) -> str:
    """What rank 0 of a step chooses, on all of its ranks, once all are there.

    Args:
        what: names the text, for messages; less than 2,000 bytes of it are passed on.
        choose: called on rank 0 only.
        host: of rank 0.

    Raises:
        TimeoutError: on every rank that is there, naming those that have not come within five minutes.
        ConnectionError: one has come and has ended before all were there.
        OSError: on rank 0, if it can open no port.
    """
    rank, size = step_rank(), step_size()
    if size == 1:
        return choose()
    # Who belongs together is told by this, so that a rank never takes another step, job or call for its own.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", SECRET_VARIABLE)
    secret = "/".join([getpass.getuser(), *(os.environ.get(name, "") for name in names), what])
    _calls[secret] += 1
    place = _Place(what, host, f"{secret}/{_calls[secret]}", list(dict.fromkeys([*_last_port, *step_ports()])))
    return _ask(place, rank) if rank else _tell(choose(), place, range(1, size))


def own_addresses(host: str) -> list[str]:
    """Where rank 0 listens: the addresses of its host. Everywhere, if its own name leads the host to itself only."""
    found = addresses_of(host)
    others = int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1
    return ["0.0.0.0"] if others and all(ip_address(each).is_loopback for each in found) else found


def _tell(text: str, place: _Place, ranks: Sequence[int]) -> str:
    told: dict[int, Line] = {}

    def admit(rank: int, line: Line, about: Sequence[str]) -> None:
        told[rank] = line

    try:
        door = Door(own_addresses(place.host), place.secret, ranks, admit, place.ports)
    except OSError as error:
        raise OSError(f"The ranks cannot agree on a {place.what}: {error}. Give {PORT_VARIABLE}=NUMBER.") from error
    if door.port != place.ports[0]:
        say(f"port {place.ports[0]} of {place.host} is taken by another program; port {door.port} takes its place")
    _last_port[:] = [door.port]
    door.open()
    with saying_what_it_waits_for(lambda: f"waiting for {_named(door.absent)} at {place.host}, port {door.port}"):
        problem = _wait_for_all(door, told, place)
    door.close()
    for line in told.values():
        line.send("left" if problem else "text", problem or text)
    for line in told.values():
        line.close(1.0)
    if problem is not None:
        raise problem
    return text


def _wait_for_all(door: Door, told: dict[int, Line], place: _Place) -> OSError | None:
    """Until all have come; otherwise what has happened."""
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while not door.wait(max(0.0, min(_EVERY, deadline - time.monotonic()))):
        here = dict(told)
        if gone := [rank for rank, line in here.items() if _has_ended(line)]:
            return ConnectionError(f"{_named(gone)} has ended while the ranks met to agree on a {place.what}.")
        if time.monotonic() >= deadline:
            return TimeoutError(
                f"{_named(door.absent)} did not come within {TIMEOUT} to agree on a {place.what}: ended before it, or "
                "never started. srun --kill-on-bad-exit=1 ends a step with its first task that fails."
            )
        for line in here.values():
            line.send("wait", _named(door.absent))
    return None


def _has_ended(line: Line) -> bool:
    try:
        line.receive()
    except Ended:
        return True
    return False


def _ask(place: _Place, rank: int) -> str:
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    waits_for = "rank 0"
    with saying_what_it_waits_for(lambda: f"waiting for {waits_for} at {place}"):
        line = _enter(place, rank, deadline)
        until = time.monotonic() + TIMEOUT.total_seconds() + _GRACE  # rank 0 knows by then
        try:
            while True:
                word, said = line.take(until - time.monotonic())
                if word == "text":
                    return said
                if word == "left":
                    raise TimeoutError(said)
                waits_for = said
        except (Ended, ValueError):
            message = f"rank 0 ({place.host}) has ended while the ranks met to agree on a {place.what}."
            raise ConnectionError(message) from None
        finally:
            line.close()


def _enter(place: _Place, rank: int, deadline: float) -> Line:
    for port in itertools.cycle(place.ports):
        try:
            line = enter(place.host, port, place.secret, rank, seconds=2.0)
            _last_port[:] = [port]
            return line
        except OSError:  # nobody listens there, or somebody else
            if time.monotonic() > deadline:
                message = f"rank 0 ({place}) did not say within {TIMEOUT} which {place.what}."
                raise TimeoutError(message) from None
        if port == place.ports[-1]:
            time.sleep(0.1)
    raise AssertionError


def _named(ranks: Iterable[int]) -> str:
    """``rank 1 (host n2), rank 3``; many of them by number only."""
    every = sorted(ranks)
    texts = []
    for rank in every[:_NAMED]:
        host = host_of_rank(rank)
        texts.append(f"rank {rank} (host {host})" if host else f"rank {rank}")
    return ", ".join(texts) + (f" and {len(every) - _NAMED} others" if len(every) > _NAMED else "")
