"""What the row-sparse optimizers share: an ordinary ``torch.optim.Optimizer`` that also steps centers row by row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_pfc.buffers.lazy_zeros import zero_pages
from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.distributed.stated_rows import own_rows
from lightning_pfc.kernels.library import using
from lightning_pfc.keyed_random.rounding_noise import RowNoise
from lightning_pfc.optim.fused_rows import FusedRows
from lightning_pfc.optim.row_formats import STATE_DTYPES, RowStorage, convert_rows, row_width, storage_of
from lightning_pfc.optim.row_step import RowStep, StepsRows
from lightning_pfc.optim.row_update import RowUpdate, row_update
from lightning_pfc.optim.rows import is_row_sharded, mark_row_sparse, row_chunks, rows_per_chunk, whole_gradient
from lightning_pfc.storage.row_files import row_files


class RowSparseOptimizer(torch.optim.Optimizer, StepsRows):
    """Base of the optimizers of this package.

    One object steps both kinds of parameters. Those with dense gradients are handed to PyTorch's own functional
    optimizers. Those of a Partial FC head, and any with a row-sparse gradient (``torch.nn.Embedding(sparse=True)``),
    are stepped by rows: a row that is not in the gradient keeps its weight and its state, bit for bit. A dense gradient
    of a head's parameter means that every row was sampled.

    Parameters of a head are told to have row-sparse gradients when the optimizer is made, or given a new group. They
    may be without storage then; state is made at the first step, in memory that is committed only where it is written
    (on a CPU).

    No collective is run, nothing waits for a device.

    State of a parameter, in ``state_dict()`` as usual:
        ``step``: 0-d float32 on the CPU, the number of steps taken with a gradient: the same on every rank; with
        ``capturable=True`` on the device of the parameter.
        The keys of :attr:`row_state_keys`: tensors whose first dimension is that of the parameter, one entry per row. A
        checkpoint splits them over ranks as it splits the parameter. The other keys are the same on every rank.
    """

    row_state_keys: ClassVar[frozenset[str]]
    """Names of the state tensors of a head's parameter that have one entry per row, in any ``state_dtype``."""

    _noise: tuple[tuple[Any, ...], RowNoise] | None = None
    _steps_in_backward = False

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, {"capturable": False, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as in ``torch.optim.Optimizer``, and marks the parameters of heads as row-sparse.

        Raises:
            ValueError: If an option of the group is out of range, or one that only the optimizers of PyTorch have.
        """
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._mark_heads()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients, as in ``torch.optim.Optimizer``; a backward pass may then update the centers again."""
        super().zero_grad(set_to_none)
        self._allow_next_backward()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            self._check_group(group)
        self._mark_heads()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with the gradients that are there.

        Args:
            closure: Computes the loss again and returns it.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            ValueError: If a gradient is neither dense nor row-sparse, or restored state does not fit a parameter.
        """
        if self._steps_in_backward and getattr(self, "found_inf", None) is not None:
            raise RuntimeError(
                f"{type(self).__name__}(update_in_backward=True) cannot be combined with a loss scaler: the gradients "
                "in the backward pass are scaled. Train with bfloat16 or float32, or with update_in_backward=False."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for param in group["params"]:
                if param.grad is None:
                    continue
                if self._is_stepped_by_rows(param):
                    self._step_rows(param, param.grad, group)
                else:
                    dense.append(param)
            if dense:
                self._step_dense(dense, group)
        self._allow_next_backward()
        return loss

    def allocate_state(self) -> None:
        """Makes the state of every parameter that has storage, as the first step would, without a step.

        For loading state into place before anything was trained. What is there already is left alone.
        """
        for group in self.param_groups:
            for param in group["params"]:
                if param.is_meta or not param.requires_grad:
                    continue
                if self._is_stepped_by_rows(param):
                    self._ensure_row_state(param, group)
                else:
                    self._ensure_dense_state(param, group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, and keeps the type in which the state of rows is stored.

        ``torch.optim.Optimizer`` casts all state to the type of the parameter, which would round the state of centers
        that are stored in fewer bits. The state of ``torch.optim`` twins (``SGD``, ``AdamW``) is accepted where its
        keys agree.

        Raises:
            ValueError: If the groups differ from those of this optimizer, or state of rows has another number of rows.
        """
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        parameters = dict(zip(saved_ids, own, strict=False))  # torch reports groups that do not fit, below
        replicated: dict[Any, Any] = {}
        by_rows: dict[Tensor, dict[str, Tensor]] = {}
        for key, state in state_dict["state"].items():
            param = parameters.get(key)
            if param is None or not is_row_sharded(param):
                replicated[key] = state
                continue
            replicated[key] = {k: v for k, v in state.items() if k not in self.row_state_keys}
            # torch writes None for a buffer that was never needed
            rows = {k: v for k, v in state.items() if k in self.row_state_keys and v is not None}
            record, whose = class_rows(param), f"{type(self).__name__}'s"
            assert record is not None
            by_rows[param] = {k: own_rows(v, f"{whose} {k}", record.shard, len(param)) for k, v in rows.items()}
        super().load_state_dict({**state_dict, "state": replicated})
        for param, state in by_rows.items():
            for name, value in state.items():
                if not param.is_meta:
                    _check_rows(name, value, param)
                    value = value.to(param.device)
                    if row_files(param) is not None:  # state that is kept in a file stays there
                        value = self._new_state(param, name, value.shape, value.dtype).copy_(value)
                self.state[param][name] = value

    @abstractmethod
    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError for options that are out of range. ``group`` has all of them."""

    @abstractmethod
    def _step_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Steps parameters with dense gradients, by a functional optimizer of PyTorch."""

    @abstractmethod
    def _ensure_dense_state(self, param: Tensor, group: dict[str, Any]) -> None:
        """Makes the state of a parameter with dense gradients, under the keys and in the shapes of PyTorch's twin."""

    @abstractmethod
    def _row_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, RowStorage]]:
        """Shapes of the state of a parameter that is stepped by rows, first the number of rows, and how it is kept."""

    def _is_stepped_by_rows(self, param: Tensor) -> bool:
        return is_row_sharded(param) or (param.grad is not None and param.grad.layout != torch.strided)

    def _mark_heads(self) -> None:
        self._steps_in_backward = False
        for group in self.param_groups:
            for param in group["params"]:
                record = class_rows(param)
                if record is None:
                    continue
                mark_row_sparse(param, self)
                in_backward = group["update_in_backward"]
                record.update = RowUpdate(self) if in_backward else None
                self._steps_in_backward = self._steps_in_backward or in_backward
        # A loss scaler then leaves its verdict in ``found_inf``, by which step() sees that there is one.
        self._step_supports_amp_scaling = self._steps_in_backward

    def _allow_next_backward(self) -> None:
        if self._steps_in_backward:
            for group in self.param_groups:
                for param in group["params"]:
                    if (update := row_update(param)) is not None:
                        update.done = False

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        return next(group for group in self.param_groups if any(own is param for own in group["params"]))

    def _ensure_row_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
        state["step"] = state["step"].to(param.device if group["capturable"] else "cpu")
        for name, (shape, storage) in self._row_state(param, group).items():
            layout = storage.layout(name, shape)
            found = {key: value for key, value in state.items() if key == name or key in layout}
            for key, value in found.items():
                _check_rows(key, value, param)
                state[key] = found[key] = value.to(param.device)
            if {key: value.dtype for key, value in found.items()} == {key: dtype for key, (_, dtype) in layout.items()}:
                continue
            made = {key: self._new_state(param, key, size, dtype) for key, (size, dtype) in layout.items()}
            if name in found:  # state of another type: of a torch optimizer, or of a run with another state_dtype
                convert_rows(name, storage_of(found[name].dtype), state, storage, made, rows_per_chunk(param))
                for key in storage_of(found[name].dtype).layout(name, shape):
                    del state[key]
            state.update(made)
        return state

    def _new_state(self, param: Tensor, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Zeros, or what is on disk for a head that keeps its rows in files."""
        files = row_files(param)
        if files is not None:
            return files.tensor(name, shape, dtype)
        return zero_pages(shape, dtype=dtype, device=param.device)

    def _begin_rows(self, param: Tensor, group: dict[str, Any]) -> RowStep:
        state = self._ensure_row_state(param, group)
        state["step"] += 1
        storages = {name: storage for name, (_, storage) in self._row_state(param, group).items()}
        return RowStep(self, param, state, storages, group)

    def _row_noise(self, param: Tensor, group: dict[str, Any], step: int) -> RowNoise:
        key = (group["rounding_seed"], step, row_width(param.shape), param.device)
        if self._noise is None or self._noise[0] != key:  # heads of one width share the table of a step
            self._noise = (key, RowNoise(*key))
        return self._noise[1]

    def _step_rows(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        record, step = class_rows(param), self._begin_rows(param, group)
        given = None if record is None else record.given
        with using(None if given is None else given.kernels):
            fused = FusedRows.of(step)
            if fused is not None:
                fused.apply(*whole_gradient(grad, given), projects=False)
                return
        for chunk in row_chunks(grad):
            step.apply(chunk)


def updates_in_backward(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer`` updates centers inside the backward pass, where clipping cannot reach."""
    return isinstance(optimizer, RowSparseOptimizer) and optimizer._steps_in_backward


def check_options(group: dict[str, Any], **lowest: float) -> None:
    """Raises ValueError for a group with an option below its lowest value, or with one that only ``torch.optim`` has.

    Args:
        group: Options by name.
        lowest: Lowest allowed value by name of the option.
    """
    for name, bound in lowest.items():
        if not float(group[name]) >= bound:
            raise ValueError(f"{name}={group[name]} is not allowed; give {name} >= {bound:g}.")
    if group.get("state_dtype") not in (None, *STATE_DTYPES):
        raise ValueError(f"state_dtype={group['state_dtype']!r} is unknown; give one of {', '.join(STATE_DTYPES)}.")
    for name in ("dampening", "maximize", "amsgrad", "lr_decay"):
        if group.get(name):
            raise ValueError(
                f"{name}={group[name]} is an option of torch.optim that row-sparse optimizers do not have; "
                f"leave it out, or use the optimizer of torch.optim, which moves every center in every step."
            )


def _check_rows(name: str, value: Tensor, param: Tensor) -> None:
    if value.shape[:1] != param.shape[:1]:
        raise ValueError(
            f"optimizer state {name!r} has {value.shape[0] if value.dim() else 0} rows, its parameter "
            f"{param.shape[0]}; the state of a head is split over ranks as the head is: load a checkpoint through the "
            "strategy, which splits it anew."
        )
