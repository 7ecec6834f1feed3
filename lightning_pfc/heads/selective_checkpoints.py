"""Selective checkpointing set aside: what a policy keeps of a region, it keeps outside the head."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

# of torch.utils.checkpoint; the first keeps the results of operations by their number, the second gives them back
_MODES = ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")


def without_selection(method: F) -> F:
    """Decorator: ``torch.utils.checkpoint(context_fn=create_selective_checkpoint_contexts(...))`` sees nothing of it.

    A policy keeps the n-th result of an operation for the n-th call of the second run. A head's second run neither
    draws nor remembers, so it calls fewer; and it writes in place. It is computed again as a whole.
    """

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch._C._len_torch_dispatch_stack():
            return method(*args, **kwargs)
        with _selection_aside():
            return method(*args, **kwargs)

    return call  # type: ignore[return-value]


@contextmanager
def _selection_aside() -> Iterator[None]:
    """Takes the policies out of the stack of modes, which has no public door, and leaves all others there."""
    checkpointing = sys.modules.get("torch.utils.checkpoint")
    kinds = tuple(getattr(checkpointing, name) for name in _MODES if hasattr(checkpointing, name))
    stack = [torch._C._get_dispatch_stack_at(place) for place in range(torch._C._len_torch_dispatch_stack())]
    _replace(stack, [mode for mode in stack if not isinstance(mode, kinds)])
    try:
        yield
    finally:
        _replace([mode for mode in stack if not isinstance(mode, kinds)], stack)


def _replace(before: list[Any], after: list[Any]) -> None:
    if len(before) == len(after):
        return
    for _ in before:
        torch._C._pop_torch_dispatch_stack(None)
    for mode in after:
        torch._C._push_on_torch_dispatch_stack(mode)
