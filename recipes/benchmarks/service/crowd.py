"""Connections that do nobody any good: idle ones, one that sends a byte at a time, and clients that hang up.

They are a process of their own, so that what they cost the clients that work is what they cost the service and the
machine, and not Python's lock.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import select
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

_HEAD = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
_PAUSE = 0.1  # seconds between two rounds of the impatient
_HUNG_UP = 5  # of them in a round


@contextlib.contextmanager
def crowd(host: str, idle: int) -> Iterator[dict[str, int]]:
    """Within it they are there.

    Args:
        host: and port of the service.
        idle: how many connections say nothing.

    Yields:
        Filled when it ends: how many have hung up, and how many idle connections are answered afterwards.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_be, args=(host, idle, theirs), daemon=True)
    process.start()
    found: dict[str, int] = {}
    try:
        ours.recv()
        yield found
        ours.send("enough")
        found |= ours.recv()
    finally:
        process.terminate()
        process.join()


def _be(host: str, idle: int, parent: Connection) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(idle + 100, most) if most > 0 else idle + 100, most))
    silent = [_connect(host) for _ in range(idle)]
    slow, gone = _connect(host, _HEAD + b'{"image": "'), 0
    parent.send("ready")
    while not parent.poll(_PAUSE):
        silent = _open_again(silent, host)
        try:
            slow.sendall(b"A")
        except OSError:  # its time was up
            slow = _connect(host, _HEAD + b'{"image": "')
        for _ in range(_HUNG_UP):
            _connect(host, _HEAD).close()
            gone += 1
    parent.send({"hung up": gone, "idle ones answered": sum(_is_answered(each) for each in silent)})


def _open_again(silent: list[socket.socket], host: str) -> list[socket.socket]:
    """In place of those that were closed since they said nothing for too long, others."""
    poll = select.poll()
    for each in silent:
        poll.register(each, select.POLLIN)
    closed = {number for number, _ in poll.poll(0)}
    return [_connect(host) if each.fileno() in closed else each for each in silent]


def _connect(host: str, said: bytes = b"") -> socket.socket:
    name, _, port = host.rpartition(":")
    connection = socket.create_connection((name, int(port)), timeout=60)
    connection.sendall(said)
    return connection


def _is_answered(connection: socket.socket) -> bool:
    answer: Any = b""
    with contextlib.suppress(OSError):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.recv(200)
    return bool(answer.startswith(b"HTTP/1.1 200"))
