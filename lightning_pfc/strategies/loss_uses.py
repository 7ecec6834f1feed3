"""Losses that reduce the centers themselves: a norm or a mean of ``head.weight`` is that of one rank's shard."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_MOVES = {"Clone", "View", "UnsafeView", "Reshape", "ToCopy", "Cat", "Squeeze", "Unsqueeze"}
_LINEAR = {"Add", "Mul", "Neg", "Sub", "Div"}
_CURVES = {"Pow", "Abs", "Exp", "Log", "Sqrt", "Rsqrt", "Relu", "Sigmoid", "Tanh", "Softplus", "Sin", "Cos", "Erf"}
_ELEMENTS = (
    _MOVES | _LINEAR | _CURVES | {"Clamp", "ClampMin", "ClampMax", "Expand", "Permute", "T", "Transpose", "Where"}
)
_SUMS = _MOVES | _LINEAR | {"Stack", "Sum", "Mean"}  # of totals, each of which is one number of all ranks
_LOSSES = {"MseLoss", "SmoothL1Loss", "HuberLoss", "Dot"}  # which add up, if their reduction says so


class LossUses:
    """Looks at the graph of a loss now and then: after 0, 1, 2, 4, 8, ... batches."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()
        self._batches = 0

    def look(self, output: Any, shards: Mapping[str, Tensor]) -> None:
        """Warn once of each shard that the loss reduces by anything but a sum of its numbers.

        A sum is right: each rank adds the gradients of its own rows. No collective.

        Args:
            output: what ``training_step`` gave.
            shards: parameters of which every rank has other rows, by name.
        """
        batch, self._batches = self._batches, self._batches + 1
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if batch & (batch - 1) or not isinstance(loss, Tensor) or loss.grad_fn is None:
            return
        for name, operation in reduced_shards(loss, shards):
            if (name, operation) not in self._told:
                self._told.add((name, operation))
                warnings.warn(_message(name, operation), stacklevel=4)


def reduced_shards(loss: Tensor, shards: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Name of each shard that a loss reduces, and the operation that does.

    Args:
        loss: with its graph.
        shards: by name.
    """
    names = {id(value): name for name, value in shards.items()}
    above, leaves = _graph(loss.grad_fn)
    for leaf in leaves:
        name = names.get(id(leaf.variable))
        operation = None if name is None else _reduction(leaf, above)
        if name is not None and operation is not None:
            yield name, operation


def _graph(root: Any) -> tuple[dict[Any, list[Any]], list[Any]]:
    """Of each node those that use it, and the nodes of parameters."""
    above: dict[Any, list[Any]] = {root: []}
    leaves, pending = [], [root]
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            leaves.append(node)
        for below, _ in node.next_functions:
            if below is None:
                continue
            if below not in above:
                above[below] = []
                pending.append(below)
            above[below].append(node)
    return above, leaves


def _reduction(leaf: Any, above: Mapping[Any, list[Any]]) -> str | None:
    """The first operation on the way to the loss that is neither of single numbers or rows nor a sum of them all."""
    pending, seen = [(leaf, False)], set()
    while pending:
        node, summed = pending.pop()
        for user in above[node]:
            if (user, summed) in seen or hasattr(type(user), "_forward_cls"):  # a head's own, or unknown
                continue
            seen.add((user, summed))
            operation = re.sub(r"Backward\d*$", "", type(user).__name__)
            total = not summed and _is_total(user, operation, leaf.variable.dim())
            if not (total or operation in (_SUMS if summed else _ELEMENTS) or (not summed and _is_of_rows(user))):
                return operation
            pending.append((user, summed or total))
    return None


def _is_total(node: Any, operation: str, dims: int) -> bool:
    """Whether it adds up all numbers."""
    if operation == "Sum":
        return len(_dims(node) or range(dims)) == dims
    return operation in _LOSSES and getattr(node, "_saved_reduction", 2) == 2


def _is_of_rows(node: Any) -> bool:
    """Whether it makes one number of each row, which other rows do not change."""
    dims = _dims(node)
    return bool(dims) and all(dim != 0 for dim in dims)


def _dims(node: Any) -> tuple[int, ...]:
    """The dimensions that it reduces, where it says so; empty: all, or unknown."""
    saved = getattr(node, "_saved_dim", None)
    if saved is None or isinstance(saved, int):
        return () if saved is None else (saved,)
    return tuple(dim - 2 * (dim & 1 << 63) for dim in saved)  # -1 is saved without its sign


def _message(name: str, operation: str) -> str:
    return (
        f"The loss of training_step takes {operation} of {name}, which on this rank is a shard: the rows of its own "
        "classes. A sum of its numbers is right (weight.pow(2).sum()); a norm, a mean, or products of centers with "
        "each other are those of one shard, and others on another number of ranks. Leave the head's "
        "parameters out of such a term, or give it weights that are the same on every rank."
    )
