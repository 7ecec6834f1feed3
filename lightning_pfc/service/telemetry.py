"""Figures for Prometheus, and a log of one JSON object a line. Neither has a name, a picture or a number of a face."""

from __future__ import annotations

import json
import sys
import time
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

_ROUTES = ("embed", "compare", "search", "identities", "pictures", "health", "ready", "metrics", "model", "page")


class Telemetry:
    """What the service tells of itself.

    Args:
        log: where lines go; None: nowhere.
    """

    def __init__(self, log: IO[str] | None = sys.stderr) -> None:
        self._log = log
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pfc_requests_total",
            "Requests by route, method and status",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram("pfc_request_seconds", "Seconds until an answer", ["route"], registry=self.registry)
        self._batches = Histogram(
            "pfc_batch_pictures",
            "Pictures in a call of the network",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.queue = Gauge("pfc_queue_pictures", "Pictures that wait or are being embedded", registry=self.registry)
        self.identities = Gauge("pfc_identities", "Identities in the gallery", registry=self.registry)
        self.pictures = Gauge("pfc_pictures", "Pictures in the gallery", registry=self.registry)

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log a request; its path may hold a name, so only the first part of it is told."""
        first = scope["path"].strip("/").partition("/")[0]
        route = first if first in _ROUTES else ("page" if not first else "other")
        method = scope["method"] if scope["method"] in ("GET", "POST", "PATCH", "DELETE", "HEAD") else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self.event("request", route=route, method=method, status=status, seconds=round(seconds, 4))

    def batch(self, size: int) -> None:
        """Count a call of the network."""
        self._batches.observe(size)

    def event(self, name: str, **facts: Any) -> None:
        """One line of the log."""
        if self._log is not None:
            print(json.dumps({"time": round(time.time(), 3), "event": name, **facts}), file=self._log, flush=True)

    def text(self) -> bytes:
        """All figures in Prometheus's format."""
        return generate_latest(self.registry)
