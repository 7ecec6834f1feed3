"""The one place from which kernels are started, so that they can be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

_counters: list[list[str]] = []
_recorders: list[list[Launch]] = []


class Launch(NamedTuple):
    """A launch that was recorded in place of being made.

    Attributes:
        kernel: the Triton function.
        grid: how many programs.
        arguments: in order.
        options: constants of the kernel and of the compiler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *rest: Any, **options: Any) -> None:
    """Start a Triton kernel on the device of its first argument; an empty grid starts nothing."""
    if 0 in grid:
        return
    name = getattr(kernel, "fn", kernel).__name__
    for counter in _counters:
        counter.append(name)
    if _recorders:
        _recorders[-1].append(Launch(kernel, grid, (first, *rest), options))
        return
    on_device = torch.cuda.device(first.device) if first.is_cuda else nullcontext()
    with on_device:
        kernel[grid](first, *rest, **options)


def launched(name: str) -> None:
    """Count a launch of the torch library that an operation makes between its kernels."""
    for counter in _counters:
        counter.append(name)


@contextmanager
def counted_launches() -> Iterator[list[str]]:
    """The names of the kernels started while the context is open, in order."""
    names: list[str] = []
    _counters.append(names)
    try:
        yield names
    finally:
        _counters[:] = [counter for counter in _counters if counter is not names]


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """While open, kernels are not started but listed with what they were given."""
    launches: list[Launch] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.pop()
