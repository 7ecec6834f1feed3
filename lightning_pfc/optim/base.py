"""What the row-sparse optimizers share: an ordinary ``torch.optim.Optimizer`` that also steps centers row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_pfc.optim.memory import zero_pages
from lightning_pfc.optim.rows import RowChunk, is_row_sharded, mark_row_sparse, read_rows, row_chunks, write_rows


class RowSparseOptimizer(torch.optim.Optimizer, ABC):
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
        ``step``: 0-d float32 on the CPU, the number of steps taken with a gradient: the same on every rank.
        The keys of :attr:`row_state_keys`: tensors whose first dimension is that of the parameter, one entry per row. A
        checkpoint splits them over ranks as it splits the parameter. The other keys are the same on every rank.
    """

    row_state_keys: ClassVar[frozenset[str]]
    """Names of the state tensors of a head's parameter that have one entry per row."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as in ``torch.optim.Optimizer``, and marks the parameters of heads as row-sparse.

        Raises:
            ValueError: If an option of the group is out of range, or one that only the optimizers of PyTorch have.
        """
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._mark_heads()

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
            by_rows[param] = {k: v for k, v in state.items() if k in self.row_state_keys and v is not None}
        super().load_state_dict({**state_dict, "state": replicated})
        for param, state in by_rows.items():
            for name, value in state.items():
                if not param.is_meta:
                    _check_rows(name, value, param)
                    value = value.to(param.device)
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
    def _row_state_shapes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        """Shapes of the state of a parameter that is stepped by rows; the first dimension is the number of rows."""

    @abstractmethod
    def _update_rows(
        self, weight: Tensor, state: dict[str, Tensor], grad: Tensor, group: dict[str, Any], step: int
    ) -> None:
        """The rule, for some rows.

        Args:
            weight: ``(n, *rest)``, changed in place.
            state: Rows of the state, ``(n, ...)`` each, changed in place.
            grad: ``(n, *rest)``, left as it is.
            group: Options.
            step: Number of this step, from 1.
        """

    def _is_stepped_by_rows(self, param: Tensor) -> bool:
        return is_row_sharded(param) or (param.grad is not None and param.grad.layout != torch.strided)

    def _mark_heads(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if is_row_sharded(param):
                    mark_row_sparse(param)

    def _ensure_row_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
        for name, shape in self._row_state_shapes(param, group).items():
            if name not in state:
                state[name] = zero_pages(shape, dtype=param.dtype, device=param.device)
                continue
            _check_rows(name, state[name], param)
            state[name] = state[name].to(param.device)
        return state

    def _step_rows(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self._ensure_row_state(param, group)
        state["step"] += 1
        step = int(state["step"])
        names = list(self._row_state_shapes(param, group))
        for chunk in row_chunks(grad):
            self._step_chunk(param, {name: state[name] for name in names}, chunk, group, step)

    def _step_chunk(
        self, param: Tensor, state: dict[str, Tensor], chunk: RowChunk, group: dict[str, Any], step: int
    ) -> None:
        weight = read_rows(param, chunk.rows)
        rows = {name: read_rows(value, chunk.rows) for name, value in state.items()}
        self._update_rows(weight, rows, chunk.grad, group, step)
        write_rows(param, chunk, weight)
        for name, value in state.items():
            write_rows(value, chunk, rows[name])


def check_options(group: dict[str, Any], **lowest: float) -> None:
    """Raises ValueError for a group with an option below its lowest value, or with one that only ``torch.optim`` has.

    Args:
        group: Options by name.
        lowest: Lowest allowed value by name of the option.
    """
    for name, bound in lowest.items():
        if not float(group[name]) >= bound:
            raise ValueError(f"{name}={group[name]} is not allowed; give {name} >= {bound:g}.")
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
