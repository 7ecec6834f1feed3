"""What stands before the application: who asks, how much at a time, how many bytes, how long.

A request comes in only when its key is good, its client has not too many under way, and its body has arrived whole and
within bounds; so the application never waits for a client.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_pfc.service.errors import RequestError
from lightning_pfc.service.keys import Keys
from lightning_pfc.service.limits import Limits
from lightning_pfc.service.telemetry import Telemetry

_OPEN = ("/health", "/ready", "/page/")
_METHODS_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


def scope_needed(method: str, path: str) -> str | None:
    """What a key must allow for a request; None: nothing."""
    if path == "/" or path.startswith(_OPEN):
        return None
    if path.startswith(("/identities", "/pictures")):
        if method == "POST":
            return "enrol"
        return "read" if method in ("GET", "HEAD") else "admin"
    return "read"


class Gate:
    """ASGI middleware.

    Args:
        app: what comes behind.
        keys: gives the keys of now.
        limits: bounds.
        telemetry: counts and logs.
    """

    def __init__(self, app: ASGIApp, *, keys: Callable[[], Keys], limits: Limits, telemetry: Telemetry) -> None:
        self._app, self._keys, self._limits, self._telemetry = app, keys, limits, telemetry
        self._under_way: Counter[str] = Counter()
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        began = False

        async def sending(message: Message) -> None:
            nonlocal status, began
            if message["type"] == "http.response.start":
                status, began = message["status"], True
            await send(message)

        try:
            await self._admit(scope, receive, sending)
        except RequestError as error:
            if not began:
                await _refuse(sending, error)
        except asyncio.TimeoutError:
            if not began:
                await _refuse(sending, RequestError(503, "the answer took too long; try again later.", 5))
        finally:
            self._telemetry.request(scope, status, time.monotonic() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _header(scope, b"upgrade").lower() == b"websocket":  # others may be ignored; this one waits for an answer
            raise RequestError(400, "there are no WebSockets here; send ordinary requests, as /openapi.json says.")
        client = self._client(scope)
        if self._under_way[client] >= self._limits.per_client:
            raise RequestError(429, f"{self._limits.per_client} requests at a time are taken; wait for answers.", 1)
        self._under_way[client] += 1
        size = 0
        try:
            body = await self._body(scope, receive) if scope["method"] in _METHODS_WITH_BODY else b""
            size = len(body)
            await asyncio.wait_for(self._app(_asked(scope), _replay(body, receive), send), self._limits.seconds)
        finally:
            self._held -= size
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]

    def _client(self, scope: Scope) -> str:
        """Who asks: the name of a key, or an address.

        Raises:
            RequestError: 401 without a good key where keys exist, 403 for one that does not allow this.
        """
        keys, needed = self._keys(), scope_needed(scope["method"], scope["path"])
        address = str((scope.get("client") or ("unknown", 0))[0])
        if needed is None or not keys.needed:
            return address
        key = keys.find(_secret(scope))
        if key is None:
            raise RequestError(401, "a key is needed: send it as `Authorization: Bearer KEY`.")
        if needed not in key.scopes:
            raise RequestError(403, f"key {key.name!r} may {', '.join(key.scopes)}, and this needs {needed}.")
        return f"key {key.name}"

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._limits.body
        too_large = RequestError(413, f"a request may have {limit} bytes; send fewer or smaller pictures.")
        announced = _header(scope, b"content-length")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
            raise too_large
        parts: list[bytes] = []
        size = 0
        deadline = time.monotonic() + self._limits.body_seconds
        try:
            while True:
                try:
                    message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
                except asyncio.TimeoutError:
                    raise RequestError(
                        408, f"the request did not arrive within {self._limits.body_seconds:g} s."
                    ) from None
                if message["type"] == "http.disconnect":
                    raise RequestError(400, "the client has gone.")
                part = message.get("body", b"")
                size += len(part)
                self._held += len(part)
                if size > limit:
                    raise too_large
                if self._held > self._limits.bodies:
                    raise RequestError(503, "too many large requests at a time; try again.", 2)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        except BaseException:
            self._held -= size
            raise


def _asked(scope: Scope) -> Scope:
    """HEAD is answered as GET would be; the server leaves the body out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


def _secret(scope: Scope) -> str:
    value = _header(scope, b"authorization").decode("latin-1")
    kind, _, secret = value.partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, error: RequestError) -> None:
    content: dict[str, Any] = {"detail": error.detail}
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # what is still to come will not be read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
