"""Lines of text between two processes: each of bounded length, read by a parser that neither nests nor blocks."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
import weakref

LONGEST = 8192  # bytes of a line; more is not from us
FAREWELL = 1.0  # seconds for the other side to read the last line
_FIELD = 2000  # bytes of one of its fields, so that a line of four is within that
_BREAKS = str.maketrans("\t\n\r", "   ")

_open_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_in_children(opened: socket.socket) -> None:
    """Keep a socket from the children of this process: a worker must not hold the connection of one that has died."""
    _open_sockets.add(opened)


def _close_all() -> None:
    for each in list(_open_sockets):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


def drain(wake: socket.socket) -> None:
    """Forget the bytes by which a thread was woken."""
    with contextlib.suppress(OSError):
        wake.recv(4096)


class Ended(Exception):
    """The connection is over, or what came over it is none of ours."""


class Line:
    """A connection that carries lines, each a few fields of text; it never blocks.

    Args:
        connection: a connected stream socket, which belongs to this object from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._buffer = b""
        self._ready: list[list[str]] = []
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        close_in_children(connection)

    def send(self, *fields: object) -> None:
        """One line; long fields are cut, line breaks in them become spaces.

        A full buffer or a broken connection shows itself as silence, or as an end when reading.
        """
        raw = [str(field).translate(_BREAKS).encode(errors="replace")[:_FIELD] for field in fields]
        with contextlib.suppress(OSError):
            line = b"\t".join(raw) + b"\n"
            if self.socket.send(line) < len(line):
                self.socket.shutdown(socket.SHUT_RDWR)  # half a line must not become the head of the next

    def receive(self) -> list[list[str]]:
        """The lines that have come, none if none has; one call reads no more than ``LONGEST`` bytes.

        Raises:
            Ended: at the end of the connection, or for a line that is too long.
        """
        ended = False
        try:
            chunk = self.socket.recv(LONGEST)
            self._buffer += chunk
            ended = not chunk
        except BlockingIOError:
            pass
        except OSError:
            ended = True
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > LONGEST or (ended and not lines and not self._ready):
            raise Ended
        found = self._ready + [line.decode(errors="replace").split("\t") for line in lines]
        self._ready = []
        return found

    def take(self, seconds: float) -> list[str]:
        """The next line, waited for; what came behind it is left to :meth:`receive`.

        Raises:
            Ended: see :meth:`receive`; and if none has come within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while not (found := self.receive()):
            if not select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Ended
        self._ready = found[1:]
        return found[0]

    def put_back(self, lines: list[list[str]]) -> None:
        """Have the next :meth:`receive` give these lines first."""
        self._ready = [*lines, *self._ready]

    def close(self, seconds: float = 0.0) -> None:
        """End the connection, within ``seconds`` when the other side has read all: a plain close could take it back."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(LONGEST):
                    break
        self.socket.close()
