"""Tensors of a head that has no storage yet: they have a shape, and nothing that is written to them would stay.

A head takes storage when it knows its ranks, so that no process ever holds more than its shard. Until then its tensors
are on PyTorch's device "meta", where a write does nothing, without a word. Here a write is an error that says what to
do instead. ``torch.utils.swap_tensors`` makes an ordinary Parameter of the same object later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

_COPIES = frozenset({"__get__", "detach", "clone", "to", "alias"})
_HARMLESS = frozenset({"requires_grad_", "share_memory_", "rename_"})
_IN_PLACE = frozenset(
    {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"}
    | {"__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}
)
_WAY_OUT = (
    "PartialFC has no storage yet and {what}; its centers are made, from the head's seed and init, when it knows its "
    "ranks. Choose their start with PartialFC(init=, init_std=) and leave the head out of model.apply(...), or write, "
    "read and copy them later: after head.to(device) in a single process; in on_fit_start under "
    'strategy="pfc", where each rank has the rows of head.class_range; at once in a head that is built after '
    "torch.distributed.init_process_group."
)


class _Unallocated(Tensor):
    """Refuses every operation that writes to it, or to a view of it; anything else is as on the device "meta".

    It names the device where its storage will be, since whoever asks wants to know where to compute; ``is_meta`` tells
    that there is none yet.
    """

    planned_device: torch.device
    computed = False  # by an operation, so that somebody means its numbers

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__ and isinstance(args[0], _Unallocated):
            return args[0].planned_device
        name = _write(func, args, kwargs) or _initialiser(func, sys._getframe(1))
        if name is not None:
            raise RuntimeError(_WAY_OUT.format(what=f"what {name} writes would be lost"))
        with torch._C.DisableTorchFunctionSubclass():
            try:
                result = func(*args, **kwargs)
            except (RuntimeError, NotImplementedError) as error:
                if "meta" not in str(error):
                    raise
                what = f"no numbers for {getattr(func, '__name__', func)} to read"
                raise RuntimeError(_WAY_OUT.format(what=what)) from error
            result = _marked(result)
        if isinstance(result, _Unallocated) and getattr(func, "__name__", "") not in _COPIES:
            result.computed = True
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        memo[id(self)] = made = _rebuild(*self.__reduce_ex__(2)[1])
        return made

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        is_parameter = isinstance(self, nn.Parameter)
        return _rebuild, (tuple(self.shape), self.dtype, str(self.planned_device), is_parameter, self.requires_grad)


class _UnallocatedParameter(_Unallocated, nn.Parameter):
    """The same for a Parameter."""


def refuse_writes(tensor: Tensor, planned_device: torch.device) -> None:
    """Make a tensor without storage refuse to be written to; it stays the same object. Others are left alone."""
    if tensor.is_meta and not isinstance(tensor, _Unallocated):
        tensor.__class__ = _UnallocatedParameter if isinstance(tensor, nn.Parameter) else _Unallocated
        tensor.planned_device = planned_device  # type: ignore[attr-defined]


def _marked(result: Any) -> Any:
    """What comes of such tensors has no numbers either, and views of them are written through."""
    if isinstance(result, tuple | list) and any(isinstance(item, Tensor) for item in result):
        return type(result)(_marked(item) for item in result) if type(result) in (tuple, list) else result
    if not isinstance(result, Tensor) or not result.is_meta or isinstance(result, _Unallocated):
        return result
    result = result.as_subclass(_Unallocated)
    result.planned_device = torch.device("cpu")
    return result


def _rebuild(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, is_parameter: bool, requires_grad: bool
) -> Tensor:
    made = torch.empty(shape, dtype=dtype, device="meta")
    made = nn.Parameter(made, requires_grad) if is_parameter else made
    refuse_writes(made, torch.device(device))
    return made


def refuse_written(tensors: Iterable[Tensor]) -> None:
    """Raise for a tensor without storage that was written to past :func:`refuse_writes`.

    Raises:
        RuntimeError: saying what to do.
    """
    if any(tensor.is_meta and tensor._version for tensor in tensors):
        raise RuntimeError(_WAY_OUT.format(what="what was written to it is lost"))


def _write(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What an operation is called if it writes to a tensor without storage; else None."""
    name = getattr(func, "__name__", "")
    if _holds(kwargs.get("out")):
        return f"{name}(out=...)"
    if name == "__set__" and func == Tensor.data.__set__:  # type: ignore[attr-defined]
        copied = isinstance(args[1], _Unallocated) and not args[1].computed  # as in spawn, without numbers
        return None if copied else ".data = ..."
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__") and name not in _HARMLESS)
    written = args[0] if args else kwargs.get("tensor", kwargs.get("input"))
    return name if in_place and _holds(written) else None


def _initialiser(func: Callable[..., Any], caller: FrameType) -> str | None:
    """The function of ``torch.nn.init`` that is about to leave a tensor without storage alone, if any is."""
    asks = func == Tensor.is_meta.__get__  # type: ignore[attr-defined]
    return caller.f_code.co_name if asks and caller.f_globals.get("__name__") == "torch.nn.init" else None


def _holds(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(isinstance(item, _Unallocated) for item in value)
    return isinstance(value, _Unallocated)
