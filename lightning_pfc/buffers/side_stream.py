"""Copies that a GPU makes beside what it computes: on a stream of their own, and read only once they have arrived."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor


class Streams(Protocol):
    """What a copy needs of a device's streams."""

    def beside(self) -> AbstractContextManager[Any]:
        """While open, what this thread gives to the device goes on the stream of copies, memory included."""

    def mark(self) -> Any:
        """The point in that stream that all of it so far comes before."""

    def follow(self, mark: Any, tensor: Tensor) -> None:
        """What this thread gives to the device from now on comes after ``mark``; the host waits for nothing.

        Args:
            mark: by :meth:`mark`, in any thread.
            tensor: made on the stream of copies, and read from now on: nobody gets its memory before that is done.
        """


class _CudaStreams:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def beside(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._side)

    def mark(self) -> Any:
        return self._side.record_event()

    def follow(self, mark: Any, tensor: Tensor) -> None:
        now = torch.cuda.current_stream(self._device)
        now.wait_event(mark)
        tensor.record_stream(now)


class _InTurn:
    """A device without streams: everything is done when it was asked for."""

    def beside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def mark(self) -> Any:
        return None

    def follow(self, mark: Any, tensor: Tensor) -> None:
        pass


_known: dict[torch.device, Streams] = {}


def streams_of(device: torch.device) -> Streams:
    """Those of a device: one stream of copies for the whole process."""
    if device not in _known:
        has_streams = device.type == "cuda" and torch.cuda.is_available()
        _known[device] = _CudaStreams(device) if has_streams else _InTurn()
    return _known[device]
