"""A port that opens only to the processes of one run, for as long as one of them has yet to come.

Whoever connects shows that he knows a secret without telling it (HMAC over numbers that both sides have made up), and
so does the door. Until then a connection is a stranger's: few of them are kept, for seconds, and each may send little.
A rank is in when it has answered the door's welcome: one that did not wait for it comes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightning_pfc.distributed.lines import Ended, Line, close_in_children

_STRANGERS = 128  # connections that have not shown anything yet; the oldest yields to the next
_PATIENCE = 5.0  # seconds in which a stranger must have shown it
_ACCEPTED, _PAUSE = 10, 0.02  # connections a turn, and seconds between turns: some hundred a second
_NUMBER = 32  # hexadecimal digits that each side makes up

Admit = Callable[[int, Line, Sequence[str]], None]


def addresses_of(host: str) -> list[str]:
    """The numeric addresses of a host as this process sees them.

    Raises:
        OSError: if the name is not known.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def listen_on(addresses: Sequence[str], ports: Iterable[int] = (0,)) -> list[socket.socket]:
    """Listening sockets on those of the addresses that are this host's, all of the first port that is free.

    Raises:
        OSError: if no address is this host's, or no port is free; says which were tried.
    """
    tried = list(ports)
    problem: OSError | None = None
    for port in [0] * 10 if tried == [0] else tried:
        try:
            return _listen_on_all(addresses, port)
        except OSError as error:  # noqa: PERF203
            problem = error
    where = f"port {tried[0]}" if len(tried) == 1 else f"{len(tried)} ports from {tried[0]} on"
    where = "any port" if tried == [0] else where
    raise OSError(f"{where} of {', '.join(addresses)}: {problem}")


def _listen_on_all(addresses: Sequence[str], port: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    try:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if _is_ours(address, family):
                opened.append(socket.create_server((address, port), family=family, backlog=_STRANGERS))
                port = int(opened[0].getsockname()[1])
    except OSError:
        for each in opened:
            each.close()
        raise
    if not opened:
        raise OSError("no address of this host")
    return opened


def _is_ours(address: str, family: socket.AddressFamily) -> bool:
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


@dataclass
class _Stranger:
    line: Line
    since: float
    rank: int = -1
    numbers: tuple[str, str] = ("", "")
    about: list[str] | None = None  # what a rank says of itself, once it has shown that it is one


class Door:
    """Lets each expected rank in once, from a thread of its own, and closes behind the last one.

    Args:
        addresses: numeric addresses to listen on, and no other.
        secret: what the ranks know and others do not.
        ranks: who is expected.
        admit: called in the thread for each: rank, connection, and what the rank says of itself.
        ports: to try in turn; 0 is any.

    Attributes:
        port: the one that is open, on all of the addresses.
        absent: ranks that have not come yet.

    Raises:
        OSError: if no port can be opened.
    """

    def __init__(
        self, addresses: Sequence[str], secret: str, ranks: Iterable[int], admit: Admit, ports: Iterable[int] = (0,)
    ) -> None:
        self._secret, self._admit = secret, admit
        self.absent = set(ranks)
        self._listeners = listen_on(addresses, ports)
        self.addresses = [str(each.getsockname()[0]) for each in self._listeners]
        self.port = int(self._listeners[0].getsockname()[1])
        self._strangers: list[_Stranger] = []
        self._welcomed: list[_Stranger] = []
        self._selector = selectors.DefaultSelector()
        for each in self._listeners:
            each.setblocking(False)
            close_in_children(each)
            self._selector.register(each, selectors.EVENT_READ)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)

    def open(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all have come within ``seconds``."""
        self._thread.join(seconds)
        return not self.absent

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _run(self) -> None:
        while self.absent and not self._closed.is_set():
            with contextlib.suppress(Exception):  # whatever a stranger has found out, the next one may be a rank
                self._turn()
            self._closed.wait(_PAUSE)
        for each in self._listeners:
            each.close()
        for stranger in (*self._strangers, *self._welcomed):
            if stranger.about is None or stranger.rank not in self.absent:
                stranger.line.socket.close()
            else:  # it thinks that it is in
                self._let_in(stranger, stranger.about)
        self._selector.close()

    def _turn(self) -> None:
        ready = self._selector.select(0.25)
        now = time.monotonic()
        for key, _ in ready:
            if key.data is None:
                self._accept(key.fileobj, now)
            elif not self._hear(key.data):
                self._drop(key.data)
        for old in [each for each in self._strangers if now - each.since > _PATIENCE]:
            self._drop(old)

    def _accept(self, listener: object, now: float) -> None:
        assert isinstance(listener, socket.socket)
        for _ in range(_ACCEPTED):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            stranger = _Stranger(Line(connection), now)
            self._strangers.append(stranger)
            self._selector.register(connection, selectors.EVENT_READ, stranger)
            if len(self._strangers) > _STRANGERS:
                self._drop(self._strangers[0])

    def _drop(self, stranger: _Stranger) -> None:
        if stranger in self._strangers or stranger in self._welcomed:
            self._forget(stranger)
            stranger.line.socket.close()

    def _forget(self, stranger: _Stranger) -> None:
        (self._strangers if stranger.about is None else self._welcomed).remove(stranger)
        self._selector.unregister(stranger.line.socket)

    def _let_in(self, stranger: _Stranger, about: Sequence[str]) -> None:
        self._forget(stranger)
        self.absent.discard(stranger.rank)
        self._admit(stranger.rank, stranger.line, about)

    def _hear(self, stranger: _Stranger) -> bool:
        """Whether what he sends is what a rank would send."""
        try:
            said = stranger.line.receive()
        except Ended:
            return False
        while said:
            fields = said.pop(0)
            if fields == ["here"] and stranger.about is not None and stranger.rank in self.absent:
                stranger.line.put_back(said)
                self._let_in(stranger, stranger.about)
                return True
            if not self._answer(stranger, fields):
                return False
        return True

    def _answer(self, stranger: _Stranger, fields: list[str]) -> bool:
        match fields:
            case ["hello", rank, number] if stranger.rank < 0 and len(number) == _NUMBER:
                if rank not in map(str, self.absent):
                    return False
                ours = secrets.token_hex(_NUMBER // 2)
                stranger.rank, stranger.numbers = int(rank), (number, ours)
                stranger.line.send("challenge", ours, _proof(self._secret, "door", rank, number, ours))
                return True
            case ["proof", proof, *about] if stranger.rank in self.absent and stranger.about is None:
                expected = _proof(self._secret, "rank", str(stranger.rank), *stranger.numbers)
                if not hmac.compare_digest(proof.encode(), expected.encode()):
                    return False
                self._strangers.remove(stranger)  # no flood puts it out now, and it may take its time
                self._welcomed.append(stranger)
                stranger.about = about
                stranger.line.send("welcome")
                return True
        return False


def enter(
    address: str, port: int, secret: str, rank: int, about: Sequence[object] = (), seconds: float = _PATIENCE
) -> Line:
    """Connect to a :class:`Door` and show that this is a rank of its run.

    Raises:
        OSError: if nobody listens there, or not who was expected.
    """
    line = Line(socket.create_connection((address, port), timeout=seconds))
    number = secrets.token_hex(_NUMBER // 2)
    try:
        line.send("hello", rank, number)
        word, theirs, proof = line.take(seconds)
        expected = _proof(secret, "door", str(rank), number, theirs)
        if word != "challenge" or not hmac.compare_digest(proof.encode(), expected.encode()):
            raise ValueError
        line.send("proof", _proof(secret, "rank", str(rank), number, theirs), *about)
        if line.take(seconds) != ["welcome"]:
            raise ValueError
        line.send("here")
    except (Ended, ValueError) as error:
        line.socket.close()
        raise OSError(f"{address}:{port} is not a port of this run, or too busy") from error
    return line


def _proof(secret: str, *parts: str) -> str:
    return hmac.new(secret.encode(), "\t".join(parts).encode(), hashlib.sha256).hexdigest()
