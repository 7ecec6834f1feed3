"""The port of the heartbeat: who knows the secret gets in; whatever anybody else sends changes nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lightning_pfc.distributed.door import Door, _proof, addresses_of, enter, listen_on
from lightning_pfc.distributed.lines import LONGEST, Ended, Line
from recipes.slurm.flood import CASES, Flood

HERE = ["127.0.0.1"]


class Guests:
    """Who was let in."""

    def __init__(self) -> None:
        self.lines: dict[int, tuple[Line, list[str]]] = {}

    def __call__(self, rank: int, line: Line, about: Sequence[str]) -> None:
        self.lines[rank] = line, list(about)

    def close(self) -> None:
        for line, _ in self.lines.values():
            line.close()


@pytest.fixture
def guests() -> Iterator[Guests]:
    made = Guests()
    yield made
    made.close()


def pair() -> tuple[Line, socket.socket]:
    ours, theirs = socket.socketpair()
    return Line(ours), theirs


def come_in(door: Door) -> Line:
    """As a rank does: again and again, while it is refused for want of room or time."""
    deadline = time.monotonic() + 60.0
    while True:
        with contextlib.suppress(OSError):
            return enter("127.0.0.1", door.port, "secret", 1, seconds=1.0)
        assert time.monotonic() < deadline


def test_who_knows_the_secret_gets_in_and_the_door_closes_behind_the_last(guests: Guests) -> None:
    door = Door(HERE, "secret", [1, 2], guests)
    door.open()
    lines = [enter("127.0.0.1", door.port, "secret", rank, ("host", rank)) for rank in (2, 1)]
    assert door.wait(60.0)
    assert {rank: about for rank, (_, about) in guests.lines.items()} == {1: ["host", "1"], 2: ["host", "2"]}
    guests.lines[2][0].send("hello", "there")
    assert lines[0].take(60.0) == ["hello", "there"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", door.port), timeout=2.0)
    for line in lines:
        line.close()


@pytest.mark.parametrize(("secret", "rank"), [("wrong", 1), ("secret", 3), ("secret", 0), ("", 1)])
def test_who_does_not_know_it_or_is_not_expected_is_told_nothing(guests: Guests, secret: str, rank: int) -> None:
    door = Door(HERE, "secret", [1, 2], guests)
    door.open()
    with pytest.raises(OSError, match="is not a port of this run"):
        enter("127.0.0.1", door.port, secret, rank, seconds=1.0)
    assert not guests.lines
    door.close()


def test_a_false_door_learns_nothing_and_is_left(guests: Guests) -> None:
    """It does not know the secret either; and what it was told is of no use at the true one."""
    (false,) = listen_on(HERE)
    door = Door(HERE, "secret", [1], guests)
    door.open()
    seen: list[bytes] = []

    def relay() -> None:
        connection, _ = false.accept()
        seen.append(connection.recv(1000))
        connection.sendall(b"challenge\t" + b"0" * 32 + b"\t" + b"0" * 64 + b"\n")
        seen.append(connection.recv(1000))
        connection.close()

    thread = threading.Thread(target=relay)
    thread.start()
    with pytest.raises(OSError, match="not a port of this run"):
        enter("127.0.0.1", false.getsockname()[1], "secret", 1)
    thread.join()
    assert seen[0].startswith(b"hello\t1\t")
    assert seen[1] == b""
    assert not any(b"secret" in each for each in seen)
    door.close()
    false.close()


def knock(door: Door, rank: int, secret: str = "secret") -> Line:
    """A rank that has shown what it knows, and has not looked yet whether it was let in."""
    line, number = Line(socket.create_connection(("127.0.0.1", door.port), timeout=5.0)), "0" * 32
    line.send("hello", rank, number)
    _, theirs, _ = line.take(20.0)
    line.send("proof", _proof(secret, "rank", str(rank), number, theirs), "host", rank)
    return line


def test_a_rank_that_gave_up_before_it_was_let_in_comes_again(guests: Guests) -> None:
    """A busy rank 0 answers late: whoever has left by then is not in, and must not be taken for one who has died."""
    door = Door(HERE, "secret", [1], guests)
    door.open()
    knock(door, 1).socket.close()
    line = enter("127.0.0.1", door.port, "secret", 1, ("host", 7), seconds=20.0)
    assert door.wait(20.0)
    assert guests.lines[1][1] == ["host", "7"]
    guests.lines[1][0].send("still", "there")
    assert line.take(20.0) == ["still", "there"]
    line.close()


def test_who_has_shown_it_is_no_stranger_any_more(guests: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood does not put it out, however long it takes to go on; what it says then is not lost."""
    monkeypatch.setattr("lightning_pfc.distributed.door._STRANGERS", 2)
    monkeypatch.setattr("lightning_pfc.distributed.door._PATIENCE", 0.1)
    door = Door(HERE, "secret", [1, 2], guests)
    door.open()
    line = knock(door, 1)
    assert line.take(20.0) == ["welcome"]
    strangers = [socket.create_connection(("127.0.0.1", door.port), timeout=20.0) for _ in range(6)]
    assert all(stranger.recv(1) == b"" for stranger in strangers)
    line.socket.sendall(b"here\nfailed\tno disk\n")
    other = enter("127.0.0.1", door.port, "secret", 2, seconds=20.0)
    assert door.wait(20.0)
    assert guests.lines[1][0].take(20.0) == ["failed", "no disk"]
    for each in (*strangers, line, other):
        each.close()


def test_who_was_welcomed_is_let_in_when_the_door_closes(guests: Guests) -> None:
    """It thinks that it is in: who closes the door takes leave of it."""
    door = Door(HERE, "secret", [1, 2], guests)
    door.open()
    line = knock(door, 1)
    assert line.take(20.0) == ["welcome"]
    door.close()
    guests.lines[1][0].send("bye")
    assert line.take(20.0) == ["bye"]
    assert list(guests.lines) == [1]
    line.close()


@pytest.mark.parametrize("case", CASES)
def test_a_rank_gets_in_through_a_flood(guests: Guests, case: str) -> None:
    door = Door(HERE, "secret", [1], guests)
    door.open()
    with Flood("127.0.0.1", door.port, case, threads=2) as flood:
        time.sleep(0.3)
        line = come_in(door)
        assert door.wait(60.0)
        assert len(os.listdir("/proc/self/fd")) < 500 if Path("/proc/self/fd").exists() else True
    assert flood.connections > 0
    assert list(guests.lines) == [1]
    line.close()


def test_few_strangers_are_kept_and_not_for_long(guests: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pfc.distributed.door._STRANGERS", 3)
    monkeypatch.setattr("lightning_pfc.distributed.door._PATIENCE", 0.3)
    door = Door(HERE, "secret", [1], guests)
    door.open()
    strangers = [socket.create_connection(("127.0.0.1", door.port), timeout=5.0) for _ in range(8)]
    assert all(stranger.recv(1) == b"" for stranger in strangers)  # all are sent away, though they have said nothing
    line = come_in(door)
    for each in (*strangers, line):
        each.close()


def test_only_the_given_addresses_of_this_host_are_listened_on() -> None:
    opened = listen_on(["192.0.2.1", "127.0.0.1", "127.0.0.2"])
    places = [each.getsockname() for each in opened]
    assert [place[0] for place in places] == ["127.0.0.1", "127.0.0.2"]
    assert places[0][1] == places[1][1]
    with pytest.raises(OSError, match=r"port 4\d+ of 127\.0\.0\.1: "):
        listen_on(HERE, [places[0][1]] if places[0][1] in range(40000, 50000) else [taken(opened, 40000)])
    for each in opened:
        each.close()


def taken(opened: list[socket.socket], number: int) -> int:
    """A port above ``number`` that somebody has from now on."""
    opened += listen_on(HERE, range(number, number + 1000))
    return int(opened[-1].getsockname()[1])


def test_the_next_port_is_taken_where_the_first_is_not_free() -> None:
    (first,) = listen_on(HERE, range(41000, 42000))
    port = first.getsockname()[1]
    (second,) = listen_on(HERE, range(port, port + 100))
    assert port < second.getsockname()[1] < port + 100
    first.close()
    second.close()


def test_no_address_of_this_host_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match=r"any port of 192\.0\.2\.1: no address of this host"):
        listen_on(["192.0.2.1"])


def test_localhost_is_known_by_its_numbers() -> None:
    assert "127.0.0.1" in addresses_of("localhost")


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (b"a\tb\nc\n", [["a", "b"], ["c"]]),
        (b"half", []),
        (b"[" * 5000 + b"\n", [["[" * 5000]]),
        (b"\xff\xfe\n", [["\ufffd\ufffd"]]),
        (b"\n", [[""]]),
        (b"", []),
    ],
)
def test_lines_are_read_as_they_come(sent: bytes, received: list[list[str]]) -> None:
    line, other = pair()
    other.sendall(sent)
    assert line.receive() == received
    other.close()
    line.close()


def test_a_line_that_is_too_long_ends_its_connection() -> None:
    line, other = pair()
    other.sendall(b"x" * LONGEST)
    assert line.receive() == []
    other.sendall(b"x")
    with pytest.raises(Ended):
        line.receive()
    other.close()
    line.close()


def test_what_is_sent_is_one_line_of_bounded_length() -> None:
    line, other = pair()
    line.send("at", "a\nb\tc", "é" * 5000, 7)
    raw = other.recv(1 << 16)
    assert raw.count(b"\n") == 1
    assert len(raw) < LONGEST
    assert raw.split(b"\t")[1] == b"a b c"
    other.close()
    line.close()


class Narrow(socket.socket):
    """Takes five bytes at a time, as a full buffer may."""

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        return super().send(data[:5], flags)


def test_half_a_line_is_never_the_head_of_another() -> None:
    ours, theirs = socket.socketpair()
    line, reader = Line(Narrow(fileno=ours.detach())), Line(theirs)
    line.send("a", "b")
    line.send("cut", "short")
    line.send("a", "c")
    assert reader.take(1.0) == ["a", "b"]
    with pytest.raises(Ended):
        reader.take(1.0)
    line.close()
    reader.close()


def test_the_last_line_arrives_before_the_end() -> None:
    line, other = pair()
    reader = Line(other)
    line.send("bye")
    thread = threading.Thread(target=line.close, args=(2.0,))
    thread.start()
    assert reader.take(2.0) == ["bye"]
    with pytest.raises(Ended):
        reader.take(2.0)
    reader.close()
    thread.join()
