"""Keeps torch.compile out of a method and of all that it calls."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def outside_graphs(method: F) -> F:
    """Decorator: to ``torch.compile`` the method is one call between two graphs.

    A head's collectives, checks of input and row-sparse gradients are no part of a graph; traced, they would break it
    in many places. ``torch.compiler.disable`` does this too, but imports the compiler when the class is defined, which
    takes seconds; here that waits until somebody compiles.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(method))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # the call itself is no part of a graph either
    return call  # type: ignore[return-value]
