"""A step of any optimizer on parameters that are whole, though each rank has some rows of them only.

For as long as the step takes, a shard stands in the optimizer as a ``DTensor`` over the same memory, so that torch adds
up over the ranks wherever the optimizer adds up over the parameter. Nothing of the size of the whole parameter is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import implicit_replication
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lightning_pfc.distributed import Comm
from lightning_pfc.optim.foreign.gradient import plain
from lightning_pfc.optim.foreign.shard import RowShard, row_shard

_meshes: dict[tuple[Comm, str], DeviceMesh] = {}


class WholeStep:
    """One step of an optimizer, between :meth:`enter` and :meth:`leave`, in which its shards are whole.

    Collective over the ranks that share the rows, as often as the optimizer reduces over a parameter.

    Args:
        optimizer: steps shards, perhaps through another optimizer that it holds.
        row_keys: of state, by its name, whether it has an entry per row; what is not there is judged by its shape.
    """

    def __init__(self, optimizer: Optimizer, row_keys: Mapping[str, bool] = MappingProxyType({})) -> None:
        self._family = list(family(optimizer))
        self._row_keys = row_keys
        self._made: dict[int, Any] = {}  # an optimizer may hold them while its closure runs
        self._stand_ins: list[tuple[nn.Parameter, Any, RowShard]] = []
        self._modes = ExitStack()

    def enter(self) -> None:
        """Put the stand-ins into the groups, and the state with them."""
        lists = [group["params"] for optimizer in self._family for group in optimizer.param_groups]
        entered: dict[int, Any] = {}
        for params in lists:
            for place, param in enumerate(params):
                shard = row_shard(param)
                if shard is None or (param.grad is not None and param.grad.is_sparse):
                    continue
                if id(param) not in entered:
                    entered[id(param)] = self._stand_in(param, shard)
                    self._stand_ins.append((param, entered[id(param)], shard))
                params[place] = entered[id(param)]
        for param, stand_in, shard in self._stand_ins:
            for optimizer in self._family:
                if param in optimizer.state:
                    optimizer.state[stand_in] = self._whole_state(optimizer.state.pop(param), shard)
        self._modes.enter_context(implicit_replication())
        self._modes.enter_context(_WholeResults([shard for _, _, shard in self._stand_ins]))

    def leave(self) -> None:
        """Put everything back; what was stepped is in the shards, whose memory it is."""
        self._modes.close()
        params_of = {id(stand_in): param for param, stand_in, _ in self._stand_ins}
        for optimizer in self._family:
            for group in optimizer.param_groups:
                group["params"][:] = [params_of.get(id(param), param) for param in group["params"]]
        with torch.no_grad():
            for param, stand_in, _ in self._stand_ins:
                for optimizer in self._family:
                    if stand_in in optimizer.state:
                        optimizer.state[param] = _own(optimizer.state.pop(stand_in))
                stepped = stand_in.to_local()
                if stepped.data_ptr() != param.data_ptr():  # an optimizer that sets `.data`
                    param.copy_(stepped)
                self._gradient_back(param, stand_in)
        self._stand_ins = []

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What ``step`` is to be called with: a closure computes with the shards as they are."""
        if len(args) > 1 and callable(args[1]):
            args = (args[0], self._closure(args[1]), *args[2:])
        if callable(kwargs.get("closure")):
            kwargs = {**kwargs, "closure": self._closure(kwargs["closure"])}
        return args, kwargs

    def _closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def outside() -> Any:
            self.leave()
            result = closure()
            self.enter()
            return result

        return outside

    def _stand_in(self, param: nn.Parameter, shard: RowShard) -> Any:
        stand_in = self._made.get(id(param))
        if stand_in is None or stand_in.to_local().data_ptr() != param.data_ptr():
            stand_in = nn.Parameter(_whole(param.detach(), shard), requires_grad=param.requires_grad)
            self._made[id(param)] = stand_in
        stand_in.grad = None if param.grad is None else _whole(plain(param.grad), shard)
        return stand_in

    @staticmethod
    def _gradient_back(param: nn.Parameter, stand_in: Any) -> None:
        if stand_in.grad is None:
            param.grad = None
            return
        gradient = stand_in.grad.to_local()
        if param.grad is None or gradient.data_ptr() != param.grad.data_ptr():
            param.grad = gradient

    def _has_rows(self, key: str, value: Tensor, count: int) -> bool:
        fits = value.dim() > 0 and value.shape[0] == count
        return fits and self._row_keys.get(key, True)

    def _whole_state(self, state: dict[str, Any], shard: RowShard) -> dict[str, Any]:
        def whole(key: str, value: Tensor) -> Tensor:
            return _whole(value, shard) if self._has_rows(key, value, shard.rows.num_local) else value

        return {key: tree_map_only(Tensor, partial(whole, key), item) for key, item in state.items()}


_MAKERS = frozenset(["zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"])


class _WholeResults(TorchFunctionMode):
    """What is the same on every rank is an ordinary tensor at once; only what has rows is a ``DTensor``."""

    def __init__(self, shards: Sequence[RowShard]) -> None:
        super().__init__()
        self._by_count = {shard.rows.num_classes: shard for shard in shards}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and not isinstance(args[0], DTensor) and _in_place(func):
            args, kwargs = tree_map_only(DTensor, lambda value: value.full_tensor(), (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and getattr(func, "__name__", "") in _MAKERS:
            return self._made(result)
        if isinstance(result, DTensor):
            return _settled(result)
        if isinstance(result, list | tuple):
            return tree_map_only(DTensor, _settled, result)
        return result

    def _made(self, new: Tensor) -> Tensor:
        """New state with an entry for each row of a whole is made of this rank's rows."""
        new = _settled(new) if isinstance(new, DTensor) else new
        shard = self._by_count.get(new.shape[0]) if new.dim() and not isinstance(new, DTensor) else None
        return new if shard is None else _whole(new[shard.rows.start : shard.rows.stop].clone(), shard)


def _settled(value: DTensor) -> Tensor:
    if any(placement.is_partial() for placement in value.placements):
        value = value.redistribute(placements=[Replicate()])
    return value.to_local() if value.placements[0].is_replicate() else value


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__i") if name.endswith("__") else name.endswith("_")


def family(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer and those that it holds, such as the one whose steps it looks ahead of."""
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            yield from family(value)


def _own(state: dict[str, Any]) -> dict[str, Any]:
    return {key: tree_map_only(DTensor, lambda value: value.to_local(), item) for key, item in state.items()}


def _whole(rows: Tensor, shard: RowShard) -> DTensor:
    """This rank's rows (c, ...) as a part of the whole (C, ...), in the same memory."""
    shape = torch.Size((shard.rows.num_classes, *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh = _mesh(shard.comm, rows.device.type)
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _mesh(comm: Comm, device_type: str) -> DeviceMesh:
    if (comm, device_type) not in _meshes:
        # Rows that are kept on the host need a group that works there; that of the control channel does.
        group = comm.agreement.group if device_type == "cpu" and comm.num_replicas == 1 else comm.shard_group
        assert group is not None
        _meshes.clear()
        _meshes[comm, device_type] = DeviceMesh.from_group(group, device_type)
    return _meshes[comm, device_type]
