"""Two streams of the pretended GPU: one that computes, and one of copies that is as late as it may be.

A copy that is given to the second stream happens when the first one is told to come after it, and not before. So what
reads too early would read what was never written; it raises. Memory that is let go of is poisoned, and letting go of
what the first stream has read without keeping it for that stream is a fault: the next copy might have had that memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.unit.pretended_gpu import Elsewhere, PretendedGPU


class ReadTooEarlyError(AssertionError):
    """Read on one stream, written on the other, and neither waits for the other."""


class _Memory:
    """Memory that was taken on the stream of copies."""

    def __init__(self, inner: Tensor) -> None:
        self.inner, self.holders = inner, 0
        self.last_copy = 0
        self.was_read = self.is_kept = False


class StreamModel(PretendedGPU):
    """While open, there is the device, and it is what :mod:`lightning_pfc.buffers.side_stream` asks for its streams.

    Attributes:
        log: "copy", where one is given to the device, "compute" and "waits", in order, of the first stream.
        faults: memory that was let go of too early.
        freed: pieces of memory that were let go of, and poisoned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.faults: list[str] = []
        self.freed = 0
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._done = self._seen = 0
        self._memory: dict[int, _Memory] = {}
        self._copying = False

    # -- what side_stream.Streams asks for

    @contextmanager
    def beside(self) -> Iterator[None]:
        self._copying = True
        try:
            yield
        finally:
            self._copying = False

    def mark(self) -> int:
        return len(self._copies)

    def follow(self, mark: int, tensor: Tensor) -> None:
        for target, source in self._copies[self._done : mark]:
            target.copy_(source)
        self._done, self._seen = max(self._done, mark), max(self._seen, mark)
        self._memory_of(tensor).is_kept = True  # type: ignore[union-attr]
        self.log.append("waits")

    # -- what the streams do

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._copying and func is torch.ops.aten.copy_.default and isinstance(args[0], Elsewhere):
            target, source = args[:2]
            self._copies.append((target.inner, source))
            self._memory_of(target).last_copy = len(self._copies)  # type: ignore[union-attr]
            self.log.append("copy")
            return target
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Elsewhere)]
        if not func.is_view and not self._copying:
            for leaf in given:
                self._check(leaf, func)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Elsewhere)]
        if self._copying and given and not func.is_view:
            raise AssertionError(f"{func} on the stream of copies")
        if (given or made) and not self._copying and not func.is_view:
            self.log.append("compute")
        for leaf in made:
            if all(leaf is not other for other in given):
                self._hold(leaf, new=self._copying and not func.is_view)
        return result

    def _memory_of(self, tensor: Tensor) -> _Memory | None:
        return self._memory.get(tensor.inner.untyped_storage().data_ptr()) if isinstance(tensor, Elsewhere) else None

    def _check(self, tensor: Elsewhere, func: Any) -> None:
        memory = self._memory_of(tensor)
        if memory is None:
            return
        if memory.last_copy > self._seen:
            raise ReadTooEarlyError(f"{func} reads copy {memory.last_copy}, and has waited for {self._seen}")
        memory.was_read = True

    def _hold(self, tensor: Elsewhere, *, new: bool) -> None:
        key = tensor.inner.untyped_storage().data_ptr()
        if new:
            self._memory[key] = _Memory(tensor.inner.fill_(torch.nan))
        if key in self._memory:
            self._memory[key].holders += 1
            weakref.finalize(tensor, self._let_go, key).atexit = False

    def _let_go(self, key: int) -> None:
        memory = self._memory[key]
        memory.holders -= 1
        if memory.holders == 0:
            if memory.was_read and not memory.is_kept:
                self.faults.append("let go of while the stream that computes may still read it")
            memory.inner.fill_(torch.nan)
            self.freed += 1
            self._memory.pop(key)
