"""A checkpoint as Lightning makes it, taken apart into large tensors and a small rest, and put together again."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.distributed import ClassShard

INLINE_BYTES = 16384  # tensors below this stay in the rest, of which every rank keeps its own
# What differs from rank to rank whatever its size: random state, and where data loaders are.
_OF_THE_RANK = ("lightning_pfc", "loops")
_MARK = "__pfc_tensor__"


@dataclass(frozen=True)
class ClassRows:
    """This rank's rows of something that has one row per class.

    Attributes:
        tensor: (c, ...) the rows of the classes in ``shard.range``.
        shard: which classes these are.
    """

    tensor: Tensor
    shard: ClassShard

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole: (C, ...)."""
        return (self.shard.num_classes, *self.tensor.shape[1:])


def split_tree(
    tree: Any, shard_of: Callable[[str, Tensor], ClassShard | None], keep: Collection[str] = ()
) -> tuple[Any, dict[str, Tensor | ClassRows]]:
    """Take the tensors that belong into data files out of a tree of dicts, lists and tuples.

    Args:
        tree: what Lightning would hand to ``torch.save``.
        keep: paths of tensors that are taken out whatever their size.
        shard_of: tells of a tensor, by its key in the innermost dict, which classes its rows are; None: it is
            replicated.

    Returns:
        The tree with a mark in place of each tensor taken out, which shares nothing with what it was made of and so
        may be written while training goes on; and the tensors by their path, such as ``state_dict/head.weight``,
        which are those of the tree.
    """
    tensors: dict[str, Tensor | ClassRows] = {}

    def visit(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            return take(value, path)
        if isinstance(value, Mapping):
            return {key: visit(item, (*path, str(key))) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(visit(item, (*path, str(i))) for i, item in enumerate(value))
        return _own(value)

    def take(tensor: Tensor, path: tuple[str, ...]) -> Any:
        shard = shard_of(path[-1] if path else "", tensor)
        small = tensor.numel() * tensor.element_size() < INLINE_BYTES or path[:1] in [(key,) for key in _OF_THE_RANK]
        plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        key = "/".join(path)
        if shard is None and (small or not plain) and key not in keep:
            return tensor.detach().to("cpu", copy=True)
        while key in tensors:  # such as the keys 1 and "1" of one dict
            key += "'"
        tensors[key] = tensor.detach() if shard is None else ClassRows(tensor.detach(), shard)
        return {_MARK: key}

    return visit(tree, ()), tensors


def _own(value: Any) -> Any:
    """A copy of what a callback may go on changing, such as arrays and sets; itself where it cannot be copied."""
    with contextlib.suppress(Exception):
        return copy.deepcopy(value)
    return value


def join_tree(rest: Any, tensors: Mapping[str, Any]) -> Any:
    """Undo :func:`split_tree`.

    Raises:
        ValueError: if a tensor is missing.
    """
    if isinstance(rest, dict):
        if set(rest) == {_MARK}:
            key = rest[_MARK]
            if not isinstance(key, str) or key not in tensors:
                raise ValueError(f"the checkpoint has no tensor {key!r}")
            return tensors[key]
        return {key: join_tree(item, tensors) for key, item in rest.items()}
    if type(rest) in (list, tuple):
        return type(rest)(join_tree(item, tensors) for item in rest)
    return rest
