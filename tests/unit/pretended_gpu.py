"""A GPU without a GPU that computes: its numbers lie in the CPU's memory, and its work can be captured as a graph.

Tensors of class ``Elsewhere`` say that they are on another device, so the head takes the path of a GPU: sizes that do
not depend on values, operations of ``lightning_pfc.kernels`` where a GPU has kernels. While a :class:`Graph` is
captured, whatever makes the host wait raises, and every operation is written down with the tensors it read and wrote. A
replay does them again on the same memory, without any of Python's own work: numbers of the host stay what they were, as
in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_pfc import PartialFC

DEVICE = torch.device("meta")
"""By which its tensors are known: torch has no other device without memory that autograd's engine takes."""


class Elsewhere(Tensor):
    """A tensor of the pretended GPU.

    Args:
        inner: its numbers.
    """

    inner: Tensor  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {}, None)


class Done(NamedTuple):
    """One operation, as it was captured."""

    func: Any
    args: Any
    kwargs: Any
    made: list[Tensor]
    products: str | None


class Graph:
    """Operations in order, on the memory that they were captured with."""

    def __init__(self) -> None:
        self.tape: list[Done] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Do them again, products by the library that a CPU took: a graph holds the kernels, not the choice."""
        setting: Any = getattr(torch.backends.mkldnn, "matmul", None)
        before = getattr(setting, "fp32_precision", None)
        try:
            for done in self.tape:
                if done.products is not None:
                    setting.fp32_precision = done.products
                self._redo(done)
        finally:
            if before is not None:
                inherited = before == getattr(torch.backends, "fp32_precision", None)
                setting.fp32_precision = "none" if inherited else before

    @staticmethod
    def _redo(done: Done) -> None:
        found = [leaf for leaf in tree_leaves(done.func(*done.args, **done.kwargs)) if isinstance(leaf, Tensor)]
        for new, kept in zip(found, done.made, strict=True):
            if new is not kept and new.data_ptr() != kept.data_ptr():
                kept.copy_(new)


class HostWaits(AssertionError):
    """The host read what the device computes, or gave it what it cannot have in a graph."""


class PretendedGPU(TorchDispatchMode):
    """While open, there is the device.

    Attributes:
        graph: that is being captured; None: nothing is, and the host may read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph: Graph | None = None

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """While open, work is done and written down, and waiting for the device raises."""
        self.graph = made = Graph()
        try:
            yield made
        finally:
            self.graph = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.graph)


_READS = {"_local_scalar_dense", "equal", "nonzero", "unique_dim", "_unique2", "unique_consecutive", "masked_select"}
_MAKES_ROOM = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def _run(func: Any, args: Any, kwargs: Any, graph: Graph | None) -> Any:
    name = func._schema.name.partition("::")[2]
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    theirs = [leaf for leaf in given if isinstance(leaf, Elsewhere)]
    target = kwargs.get("device")
    to_host = target is not None and torch.device(target).type == "cpu"
    here = bool(theirs) or (target is not None and torch.device(target).type == DEVICE.type)
    if not here:
        return func(*args, **kwargs)
    from_host = [leaf for leaf in given if not isinstance(leaf, Elsewhere) and (leaf.dim() > 0 or "copy" in name)]
    if graph is not None and (name in _READS or to_host or from_host):
        raise HostWaits(f"{func} in a captured step: the host and the device would wait for each other.")
    wrappers = {id(leaf.inner): leaf for leaf in theirs}
    inner_args, inner_kwargs = tree_map(_inner_of(graph), (args, kwargs))
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu")
    does = _OF_GPUS.get(func, func)
    found = does(*inner_args, **inner_kwargs)
    made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    if graph is not None and not func.is_view and name not in _MAKES_ROOM:
        products = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)
        graph.tape.append(Done(does, inner_args, inner_kwargs, made, products))
    if to_host:
        return found
    return tree_map(lambda leaf: _wrapped(leaf, wrappers) if isinstance(leaf, Tensor) else leaf, found)


def _wide_product(a: Tensor, b: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    return torch.mm(a.to(out_dtype), b.to(out_dtype), out=out)


_OF_GPUS = {torch.ops.aten.mm.dtype: _wide_product, torch.ops.aten.mm.dtype_out: _wide_product}
"""What PyTorch has for a GPU alone."""


def _inner_of(graph: Graph | None) -> Any:
    def inner(leaf: Any) -> Any:
        if isinstance(leaf, Elsewhere):
            return leaf.inner
        if graph is not None and isinstance(leaf, Tensor):
            return leaf.clone()  # a number of the host: a launch takes its value
        return leaf

    return inner


def _wrapped(leaf: Tensor, wrappers: dict[int, Elsewhere]) -> Elsewhere:
    return wrappers[id(leaf)] if id(leaf) in wrappers else Elsewhere(leaf)


def move_there(head: PartialFC) -> PartialFC:
    """A head of the CPU with copies of its parameters and buffers on the pretended GPU; the Parameters are new ones."""
    head.to("cpu")
    for name, parameter in list(head._parameters.items()):
        if parameter is not None:
            made = nn.Parameter(Elsewhere(parameter.detach().clone()), requires_grad=parameter.requires_grad)
            vars(made).update({key: value for key, value in vars(parameter).items() if key == "class_rows"})
            head._parameters[name] = made
    for name, buffer in list(head._buffers.items()):
        if buffer is not None:
            head._buffers[name] = Elsewhere(buffer.clone())
    head.__dict__["_ensure_storage"] = lambda: None  # it would take these for tensors that are still to be made
    return head
