"""Forwards that autograd computes again (``torch.utils.checkpoint``): they use what the first one drew and remembered.

A checkpointed region throws its activations away and is run once more inside the backward pass. Negatives, averages and
remembered rows of that second run must be those of the first, whatever happened in between, or the gradient is that of
no loss at all; and nothing may be counted, drawn or remembered twice.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_pfc.heads.batch import GlobalBatch
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses
from lightning_pfc.heads.softmax.blended_centers import BlendedCenters

# forwards under no_grad that are remembered outside autograd functions; all others are while their graph lives
_OUTSIDE = 32
_NAME = "lightning_pfc"  # of what is remembered, on objects of autograd


def _in_backward() -> bool:
    """Whether a backward pass is running: what runs now, runs again."""
    return bool(torch._C._current_graph_task_id() != -1)


# A constant to torch.compile otherwise; this is what torch.compiler.disable sets, which imports the compiler first.
_in_backward._torchdynamo_disable = True  # type: ignore[attr-defined]


@dataclass(eq=False)
class Pass:
    """What one forward pass decides beside its arithmetic.

    Attributes:
        step: () int64, training forwards before this one.
        sampled: the classes that take part.
        training: whether averages and memory take part.
        averages: of the loss, as this pass uses them; None until they are known.
        blended: what takes the place of the centers, if anything does.
        recalled: what was remembered of the batch's classes, in the order in which it was asked for.
        again: whether autograd computes the pass again.
    """

    step: Tensor
    sampled: SampledClasses
    training: bool
    averages: dict[str, Tensor] | None = None
    blended: BlendedCenters | None = None
    recalled: list[dict[str, Tensor]] = field(default_factory=list)
    again: bool = False

    @property
    def moves_on(self) -> bool:
        """Whether what is kept from step to step changes by it."""
        return self.training and not self.again


class Passes:
    """The training forwards of one head that may be computed again."""

    def __init__(self) -> None:
        self._kept: list[weakref.ref[_Kept]] = []
        self._outside: deque[_Kept] = deque(maxlen=_OUTSIDE)
        self._again: list[_Kept] = []  # under no_grad, of the backward pass that is running

    def keep(self, first: Pass, batch: GlobalBatch, loss: Tensor) -> None:
        """Remember a forward where it may be computed again: under ``no_grad``, or with its tensors in care.

        One that is itself computed again is remembered where a region within a region will compute it once more.

        Args:
            first: what it decided.
            batch: what it was given.
            loss: what it gave; the memory lives as long as its graph.
        """
        has_hooks = _saved_tensor_hooks() is not None
        if torch.is_grad_enabled() and not has_hooks:
            return
        region = _region()
        if first.again:
            if torch.is_grad_enabled() and self._is_known(region):
                return
            region = region if torch.is_grad_enabled() else None
        kept = _Kept(first, _Fingerprint.of(batch), weakref.ref(region) if region is not None else None)
        contexts = _autograd_contexts("forward")
        if torch.is_grad_enabled() and loss.grad_fn is not None:
            metadata: Any = loss.grad_fn.metadata
            metadata[_NAME] = kept
        elif first.again:
            self._again.append(kept)
        elif not contexts:
            if not first.training:  # evaluation, which nobody computes again
                return
            self._outside.append(kept)
        for context in contexts:
            vars(context).setdefault(_NAME, []).append(kept)
        self._kept = [ref for ref in self._kept if ref() is not None] + [weakref.ref(kept)]

    def _is_known(self, region: Any) -> bool:
        return region is None or any(kept.is_of(region) for kept in self._newest_first())

    def first_of(self, batch: GlobalBatch, training: bool) -> Pass | None:
        """The pass that is being computed again; None if this forward is a new one. The same on every rank.

        In a region that is known it is the first one that was not computed again yet, since a region is run from its
        start. Elsewhere, of forwards with the same labels and embeddings, it is the last one, which is the order of a
        backward pass. On an accelerator the host waits for the comparison, except in a CUDA graph.

        Args:
            batch: what the forward is given.
            training: whether the head is in training now; where the region is known, what it was then counts.
        """
        if not _in_backward():
            self._again.clear()
            return None
        region, task = _region(), torch._C._current_graph_task_id()
        mine = _Fingerprint.of(batch)
        found = self._in_region(region, task) or self._in_context(mine, task) or self._like(mine, region, training)
        if found is None:
            return None
        found.uses, found.task = found.uses + 1, task
        return replace(found.first, again=True)

    def _in_region(self, region: Any, task: int) -> _Kept | None:
        if region is None:
            return None
        return _next_of([kept for kept in self._newest_first() if kept.is_of(region)][::-1], task)

    def _in_context(self, mine: _Fingerprint, task: int) -> _Kept | None:
        """Of the innermost autograd function whose backward is running and whose forward had this one in it."""
        known = {id(kept) for kept in self._newest_first()}
        for context in _autograd_contexts("backward"):
            inside = [kept for kept in vars(context).get(_NAME, ()) if id(kept) in known]
            if found := _next_of([kept for kept in inside if kept.fingerprint.likeness(mine)], task):
                return found
        return None

    def _like(self, mine: _Fingerprint, region: Any, training: bool) -> _Kept | None:
        best: tuple[int, int, _Kept] | None = None
        for kept in self._newest_first():
            if kept.first.training != training or (region is not None and kept.region is not None):
                continue
            likeness, turn = kept.fingerprint.likeness(mine), -kept.uses
            if likeness and (best is None or (likeness, turn) > best[:2]):
                best = (likeness, turn, kept)
        return best[2] if best is not None else None

    def _newest_first(self) -> Iterator[_Kept]:
        for ref in reversed(self._kept):
            if (kept := ref()) is not None:
                yield kept


def _next_of(kept: Sequence[_Kept], task: int) -> _Kept | None:
    """The first that this backward pass has not computed again yet."""
    return min(kept, key=lambda one: one.task == task, default=None)


@dataclass(eq=False)
class _Kept:
    first: Pass
    fingerprint: _Fingerprint
    region: weakref.ref[Any] | None
    uses: int = 0
    task: int = -1  # the backward pass that has computed it again last

    def is_of(self, region: Any) -> bool:
        return self.region is not None and self.region() is region


@dataclass(frozen=True, eq=False)
class _Fingerprint:
    """What tells batches apart: labels of all ranks, and sums of the embeddings' rows where all ranks know them."""

    labels: Tensor
    sums: Tensor | None

    @staticmethod
    def of(batch: GlobalBatch) -> _Fingerprint:
        alike = len(batch.group_sizes) == len(batch.sizes)
        return _Fingerprint(batch.all_labels, batch.x.detach().sum(1) if alike else None)

    def likeness(self, other: _Fingerprint) -> int:
        """2: the same batch; 1: the same labels; 0: another."""
        if self.labels.shape != other.labels.shape:
            return 0
        if self.labels.is_cuda and torch.cuda.is_current_stream_capturing():  # nobody may wait there
            return 2
        if not torch.equal(self.labels, other.labels):
            return 0
        # embeddings computed again may differ in the last bit, where a kernel adds up in no fixed order
        same = self.sums is None or other.sums is None or torch.equal(self.sums, other.sums)
        return 2 if same else 1


def _saved_tensor_hooks() -> tuple[Any, ...] | None:
    """The hooks that take the tensors in care which autograd saves now; None for none."""
    hooks: tuple[Any, ...] | None = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks


def _autograd_contexts(method: str) -> list[Any]:
    """The ``ctx`` of the autograd functions whose ``forward`` or ``backward`` is running, the innermost first.

    ``torch.utils.checkpoint(use_reentrant=True)`` is one, and so are those of other libraries. What runs within their
    forward has no graph of its own, but the ``ctx`` lives as long as theirs and is the same in their backward. There is
    no door to it, but it is the first argument of both. Forwards around a running backward are left out.
    """
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("forward", "backward") and code.co_argcount:
            context = frame.f_locals.get(code.co_varnames[0])
            if isinstance(context, BackwardCFunction):
                if code.co_name == method:
                    found.append(context)
                elif method == "forward":
                    break
        frame = frame.f_back
    return found


def _region() -> Any:
    """What ``torch.utils.checkpoint`` keeps of the region that is running, the first time or again; None if unknown.

    There is no public door to it. Only forwards of the same batch that are computed again in the order in which they
    were made need it.
    """
    hooks = _saved_tensor_hooks()
    pack = hooks[0] if hooks else None
    pack = getattr(pack, "_torchdynamo_orig_callable", pack)
    for cell in getattr(pack, "__closure__", None) or ():
        content = cell.cell_contents
        content = content() if isinstance(content, weakref.ref) else content
        if type(content).__name__ == "_CheckpointFrame":
            return content
    return None
