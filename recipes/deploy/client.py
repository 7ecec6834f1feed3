"""A client of pfc-serve in one file, with nothing but Python's own library: copy it into your project.

service = Service("http://127.0.0.1:8000", key="pfc_...")
service.enrol("anna", ["anna1.jpg", "anna2.jpg"])
print(service.search("someone.jpg", k=3))
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any


class ServiceError(Exception):
    """A request was refused; has the status and what the service said."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


class Service:
    """Pictures are paths or encoded bytes. Requests that find the service busy, or no answer, are sent again."""

    def __init__(self, address: str, key: str | None = None, *, timeout: float = 60.0, attempts: int = 4) -> None:
        self._address, self._key, self._timeout, self._attempts = address.rstrip("/"), key, timeout, attempts
        near = urllib.parse.urlsplit(address).hostname in ("127.0.0.1", "::1", "localhost")  # no proxy leads to it
        self._opener = urllib.request.build_opener(*[urllib.request.ProxyHandler({})] * near)

    def embed(self, *pictures: Any) -> list[list[float]]:
        """Embeddings of pictures."""
        return self._send("POST", "/embed", {"images": [_encoded(one) for one in pictures]})["embeddings"]

    def compare(self, a: Any, b: Any, threshold: str | None = None) -> dict[str, Any]:
        """Score of two pictures, and whether they are the same (None: never calibrated)."""
        return self._send("POST", "/compare", {"a": _encoded(a), "b": _encoded(b), "threshold": threshold})

    def search(self, picture: Any, k: int = 5, threshold: str | None = None) -> list[dict[str, Any]]:
        """The nearest identities, best first."""
        return self._send("POST", "/search", {"image": _encoded(picture), "k": k, "threshold": threshold})["matches"]

    def enrol(self, name: str, pictures: list[Any], metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """A new identity."""
        images = [_encoded(one) for one in pictures]
        return self._send("POST", "/identities", {"name": name, "images": images, "metadata": metadata or {}})

    def add(self, name: str, pictures: list[Any]) -> dict[str, Any]:
        """More pictures of an identity."""
        path = f"/identities/{urllib.parse.quote(name, safe='')}/pictures"
        return self._send("POST", path, {"images": [_encoded(one) for one in pictures]})

    def identities(self, after: str = "", limit: int = 100) -> dict[str, Any]:
        """A page of identities by name."""
        return self._send("GET", f"/identities?{urllib.parse.urlencode({'after': after, 'limit': limit})}")

    def delete(self, name: str) -> None:
        """Forget an identity."""
        self._send("DELETE", f"/identities/{urllib.parse.quote(name, safe='')}")

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, self._attempts + 1):
            request = urllib.request.Request(self._address + path, data, headers, method=method)
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or attempt == self._attempts:
                    raise ServiceError(error.code, _detail(error.read()) or error.reason) from None
                time.sleep(float(error.headers.get("Retry-After", 1)))
            except urllib.error.URLError as error:
                if attempt == self._attempts:
                    raise ServiceError(0, f"{self._address} does not answer: {error.reason}") from None
                time.sleep(0.5 * attempt)
        raise ServiceError(0, "no attempt was allowed: attempts must be at least 1")


def _detail(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["detail"])
    except (ValueError, KeyError, TypeError):  # not of the service, but of a proxy before it
        return ""


def _encoded(picture: Any) -> str:
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return base64.b64encode(data).decode()
