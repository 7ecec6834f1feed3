"""Requests that wait together are embedded together.

The engine takes whatever has come while it was busy, and begins at once when it is idle: a single client pays nothing
for the batches of many.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]


class QueueFullError(RuntimeError):
    """More pictures wait than the service is willing to hold."""


class _Job(NamedTuple):
    pixels: Pixels
    done: Callable[[Rows | BaseException], None]


class Batcher:
    """Embeds pictures of many requests in one thread.

    Args:
        embed: (b, H, W, C) uint8 to (b, D) float32.
        largest: pictures in one call of it, at most.
        waiting: pictures that may wait; more are refused.
        observe: told the size of every batch.
    """

    def __init__(
        self,
        embed: Callable[[Pixels], Rows],
        *,
        largest: int = 32,
        waiting: int = 1024,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._embed, self._largest, self._waiting, self._observe = embed, largest, waiting, observe
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._thread = threading.Thread(target=self._work, name="embedding", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Pictures that wait or are being embedded."""
        return self._pending

    async def embed(self, pixels: list[Pixels]) -> Rows:
        """Embeddings (n, D) of pictures (H, W, C) uint8, in order.

        Raises:
            QueueFullError: before anything is queued, if there is no room for all of them.
        """
        if not pixels:
            raise ValueError("pixels is empty; give at least one picture.")
        with self._lock:
            if self._pending + len(pixels) > self._waiting:
                raise QueueFullError(f"{self._pending} pictures wait already, of {self._waiting} at most.")
            self._pending += len(pixels)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Rows]] = []
        for one in pixels:
            future: asyncio.Future[Rows] = loop.create_future()
            futures.append(future)
            self._jobs.put(_Job(one, _setter(loop, future)))
        return np.stack(await asyncio.gather(*futures))

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch, last = [job], False
            while len(batch) < self._largest and not last:
                try:
                    following = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    last = True
                else:
                    batch.append(following)
            self._run(batch)
            if last:
                return

    def _run(self, batch: list[_Job]) -> None:
        rows: Rows | BaseException
        try:
            rows = self._embed(np.stack([job.pixels for job in batch]))
        except BaseException as error:  # the request has to hear of it, and the thread to go on
            rows = error
        with self._lock:
            self._pending -= len(batch)
        self._observe(len(batch))
        for i, job in enumerate(batch):
            job.done(rows if isinstance(rows, BaseException) else rows[i])


def _setter(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Rows]) -> Callable[[Rows | BaseException], None]:
    def settle(value: Rows | BaseException) -> None:
        if future.done():  # the client has gone
            return
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)

    def done(value: Rows | BaseException) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value)

    return done
