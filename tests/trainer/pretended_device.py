"""A device that is pretended: its tensors lie on the host, and its rules are those of a GPU.

An operator whose tensors lie on two devices raises, as it does on a GPU; only a number without dimensions and an index
may come from the host. Each time that the host would have to wait for the device is written down: a number that is
read, and a copy between the two that may not run by itself. Values are real, so whole training runs can be tried, as
fake tensors cannot. (Graphs and side streams are tried on another one, ``tests/unit/pretended_gpu.py``, by calling the
head alone.)
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
_COPIES = {"aten::_to_copy", "aten::to", "aten::copy_"}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
_entered: list[PretendedDevice] = []
_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2"}


class OnDevice(Tensor):
    """A tensor of the device; ``values`` are its numbers, on the host."""

    values: Tensor  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=torch.device(NAME, 0),
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _entered[-1].__torch_dispatch__(func, types, args, kwargs)  # autograd's threads have no modes

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = OnDevice(self.values.clone())
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied

    def __format__(self, form: str) -> str:
        return format(self.item(), form)

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()


class PretendedDevice(TorchDispatchMode):
    """While it is entered there is such a device.

    Attributes:
        waits: what the host waited for, one entry each: the operator, and where in the project it was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        _entered.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, OnDevice)]
        moved = kwargs.get("device")
        if moved is not None:
            kwargs["device"] = torch.device("cpu") if torch.device(moved).type == NAME else moved
        on_device = bool(there) if moved is None else torch.device(moved).type == NAME
        self._look(name, args, kwargs, tensors, on_device)
        if name == "aten::convolution_overrideable":  # what PyTorch asks a device for whose libraries it does not know
            func = torch.ops.aten.convolution.default
        elif name == "aten::convolution_backward_overrideable":
            grad, x, weight, *rest = args
            args = (grad, x, weight, [weight.shape[0]], *rest)
            func = torch.ops.aten.convolution_backward.default
        found = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if name == "aten::copy_":
            return args[0]
        known = {} if moved is not None else {id(_values(x)): x for x in tensors}

        def placed(x: Any) -> Any:
            if not isinstance(x, Tensor) or name in ("aten::_local_scalar_dense", "aten::equal"):
                return x
            return known.get(id(x), OnDevice(x) if on_device else x)

        return tree_map(placed, found)

    def _look(self, name: str, args: Any, kwargs: Any, tensors: list[Tensor], on_device: bool) -> None:
        host = [x for x in tensors if not isinstance(x, OnDevice)]
        if name in _COPIES:
            devices = {isinstance(x, OnDevice) for x in tensors} | ({on_device} if name != "aten::copy_" else set())
            asynchronous = kwargs.get("non_blocking") or any(a is True for a in args[2:3])
            if len(devices) > 1 and not asynchronous:
                self.waits.append(f"{name} {_place()}")
        elif len(host) < len(tensors):
            index = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)] if name in _INDEXED else []
            if any(x.dim() > 0 and not any(x is i for i in index) for x in host):
                raise RuntimeError(f"{name}: Expected all tensors to be on the same device. {_place()}")
            if name in _READS:
                self.waits.append(f"{name} {_place()}")


def _values(x: Any) -> Any:
    return x.values if isinstance(x, OnDevice) else x


def _place() -> str:
    """Where in Python an operator was called, PyTorch's own files left out."""
    calls = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    return f"at {'/'.join(Path(calls[-1].filename).parts[-2:])}:{calls[-1].lineno}"


def exchange(first: Any, second: Any) -> None:
    """As ``torch.utils.swap_tensors``, but what is written on a parameter stays on it, as ``.data =`` leaves it."""
    values = first.__dict__.pop("values", None), second.__dict__.pop("values", None)
    first.__class__, second.__class__ = second.__class__, first.__class__
    for x, own in zip((first, second), reversed(values), strict=True):
        if own is not None:
            x.__dict__.update(values=own, _is_param=True)
    torch._C._swap_tensor_impl(first, second)  # type: ignore[attr-defined]


_UNTOUCHED = torch.library.Library("_", "IMPL")


class Module:
    """What ``torch.get_device_module`` gives of it."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = manual_seed = manual_seed_all = staticmethod(lambda number: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


def register() -> torch.device:
    """The device; once in a process, which can have no other of this kind, and before Lightning is imported."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=Module)
    _UNTOUCHED.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast leaves it as it is
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # torch.tensor(device=) copies, as on a GPU
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.utils.swap_tensors = exchange
    return torch.device(NAME, 0)
