"""HTTP/1.1 by httptools, whose parser is of C; a request's head has an end, in bytes and in seconds.

The parser that uvicorn takes otherwise is of Python: it took a third of what a request costs beside its picture. It
bounds a head itself, which this one leaves to whoever uses it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 64 << 10
"""Bytes of a request before and behind its body."""
WAITING = 16
"""Requests that a client may send on a connection before the one under way is answered."""
HEAD_SECONDS = 20.0
"""Until such a head is whole, from its first byte on."""
_TOO_LONG = f"A request may have {HEAD} bytes beside its body."


class _RefusedError(Exception):
    """Raised in a callback of the parser, which hands it on within an error of its own."""


class BoundedHttp(HttpToolsProtocol):
    """One connection. The body is the gate's to bound, which knows what is in it."""

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self._beside = 0  # bytes of a request that are none of its body: head, frames of chunks, trailers
        self._head = 0  # of these, of address and headers as the parser gives them
        self._whole_head = False
        self._plain_head = b""  # of a request that asks for another protocol, without that
        self._deadline: asyncio.TimerHandle | None = None
        self._refusal = ""  # of a request that came while others are under way

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client, which may be silent as long as one that was answered."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    @override
    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._refusal:
            return
        self._beside += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            refused = error.__context__ if isinstance(error.__context__, _RefusedError) else None
            text = str(refused or "this is no request of HTTP/1.1; for TLS start the service with --tls.")
            self.logger.warning("a request was refused: %s", text)
            self.send_400_response(text)
            return
        if self._beside > HEAD and not self.transport.is_closing():
            self.send_400_response(_TOO_LONG)

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Asked for another protocol it skips the body, so it gets the head again, without that."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = self._plain_head + data[upgrade.args[0] :]
            self.parser, self._plain_head = httptools.HttpRequestParser(self), b""
            self._parse(rest)  # as often as requests may wait on a connection

    def _head_without_upgrade(self) -> bytes:
        """The head again, without the wish for another protocol, which HTTP lets a server ignore."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise _RefusedError("this is a service and no proxy: ask it for a path, such as GET /health.")
        parts = [method, b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")
            parts += [name, b": ", value, b"\r\n"]
        return b"".join([*parts, b"\r\n"])

    @override
    def send_400_response(self, msg: str) -> None:
        """What every other refusal looks like, then the end of the connection.

        Requests that came before are answered first: what comes first would be taken for the answer to the first.
        """
        if self._others_under_way():
            self._refusal = msg
            return
        body = json.dumps({"detail": msg}).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _others_under_way(self) -> bool:
        if self.cycle is not None and self.cycle.more_body and self.pipeline:
            self.pipeline.popleft()  # the request that is refused itself, whose body has not arrived
            return True
        answered = self.cycle is None or self.cycle.response_complete
        return not answered and (self.cycle.response_started or not self.cycle.more_body)

    @override
    def on_response_complete(self) -> None:
        """An answer was sent; the next request begins, or a refusal that waited is said."""
        last = not self.pipeline
        super().on_response_complete()
        if self._refusal and last and not self.transport.is_closing():
            self.send_400_response(self._refusal)

    @override
    def on_message_begin(self) -> None:
        """The first byte of a head; empty lines before it, or what is left of an answered request's body, are none."""
        self._unset_keepalive_if_required()
        if len(self.pipeline) >= WAITING:
            raise _RefusedError(
                f"{WAITING} requests wait on this connection already: read their answers first, or open another one."
            )
        self._whole_head, self._head = False, 0
        self._forget()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)
        super().on_message_begin()

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > HEAD:
            raise _RefusedError(_TOO_LONG)

    @override
    def on_url(self, url: bytes) -> None:
        """The address, or a part of it."""
        self._count(len(url))
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those behind the body, which nobody reads, are not kept."""
        self._count(len(name) + len(value) + len(": \r\n"))
        if not self._whole_head:
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._unset_keepalive_if_required()  # set if the request before was answered meanwhile
        self._whole_head = True
        self._forget()
        if self.parser.should_upgrade():
            self._plain_head = self._head_without_upgrade()
            return
        super().on_headers_complete()

    @override
    def on_body(self, body: bytes) -> None:
        """A part of the body, with which come the frames of its chunks."""
        self._beside = max(self._beside - 16 * len(body), 0)
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        """The request is whole; what comes now is the head of another."""
        if self._plain_head:
            return
        self._beside = 0
        super().on_message_complete()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was sent away."""
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.pipeline:  # nothing is read before those are under way
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)
        elif not self.transport.is_closing():
            self.send_400_response(f"The head of a request did not arrive within {HEAD_SECONDS:g} s.")
