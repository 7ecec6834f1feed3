"""How much memory a step has at once, counted on tensors without storage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GRANULE = 512
"""PyTorch's allocator of a GPU gives out multiples of this."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, follows the tensors that operators of this thread make, until the last reference is gone.

    What was there before does not count, nor what a library takes for itself (workspaces of products).

    Attributes:
        live: bytes that were made and are still held, as of the last operator.
        peak: the most that was so at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before: dict[int, StorageWeakRef] = {}  # which also keeps their keys from being given out again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._drop()
        for leaf in _with_storage((args, kwargs)):
            if _key(leaf) not in self._held:
                self._before.setdefault(_key(leaf), StorageWeakRef(leaf.untyped_storage()))  # type: ignore[no-untyped-call]
        result = func(*args, **(kwargs or {}))
        for leaf in _with_storage(result):
            if leaf.device.type != "cpu" and _key(leaf) not in self._before:
                storage = leaf.untyped_storage()
                size = -(-storage.nbytes() // _GRANULE) * _GRANULE
                self._held.setdefault(_key(leaf), (StorageWeakRef(storage), size))  # type: ignore[no-untyped-call]
        self.live = sum(size for _, size in self._held.values())
        self.peak = max(self.peak, self.live)
        return result

    def _drop(self) -> None:
        gone = [key for key, (reference, _) in self._held.items() if reference.expired()]  # type: ignore[no-untyped-call]
        for key in gone:
            del self._held[key]


def _with_storage(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
