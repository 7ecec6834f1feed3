"""The step of a chunk of rows as one kernel, on a GPU where that kernel was found good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.capture import capturing
from lightning_pfc.kernels.tiles import LARGEST_WIDTH
from lightning_pfc.optim.row_formats import SCALE_SUFFIX
from lightning_pfc.optim.row_kernels import adagrad_rows_, adamw_rows_, sgd_rows_
from lightning_pfc.optim.row_step import RowStep
from lightning_pfc.optim.rows import first_row

_OPERATIONS = {"SparseSGD": sgd_rows_, "SparseAdamW": adamw_rows_, "RowWiseAdagrad": adagrad_rows_}
DEVICES = ("cuda", "meta")
_HOME = "lightning_pfc.optim."
_DTYPES = (torch.float32, torch.bfloat16)
_LOW_BITS = 0xFFFFFFFF


class FusedRows:
    """One step of one parameter by a kernel.

    Args:
        step: of the parameter.
    """

    def __init__(self, step: RowStep) -> None:
        self._step, device = step, step.param.device
        self._number = _number(step, device)
        self._options = _options(step, device)

    @classmethod
    def of(cls, step: RowStep) -> FusedRows | None:
        """None where plain torch has to do it: on a CPU, for a rule of somebody's own, for a bias, for other types."""
        kind, param = type(step.optimizer), step.param
        operation = _OPERATIONS.get(kind.__name__)
        if operation is None or not kind.__module__.startswith(_HOME) or param.device.type not in DEVICES:
            return None
        fits = param.dim() == 2 and param.shape[1] <= LARGEST_WIDTH and param.is_contiguous() and param.dtype in _DTYPES
        fits = fits and all(value.is_contiguous() for value in step.state.values())
        return cls(step) if fits and operation.runs_on(param.device) else None

    def apply(self, rows: Tensor | slice, grad: Tensor, num_real: Tensor | None, *, projects: bool) -> None:
        """Update some rows.

        Args:
            rows: (n,) int64, distinct but for padding, or a slice.
            grad: (n, D).
            num_real: () int64, how many leading entries are no padding; None for all.
            projects: whether ``grad`` is that of the unit rows.
        """
        step, tensors = self._step, self._tensors()
        start, index = first_row(step.param), None
        if isinstance(rows, slice):
            tensors = [None if tensor is None else tensor[rows] for tensor in tensors]
            start += rows.start
        else:
            index = rows
        seed = int(step.group["rounding_seed"])
        halves = [seed & _LOW_BITS, (seed >> 32) & _LOW_BITS]
        common = (grad.contiguous(), index, num_real, self._options, self._number, start, halves, projects)
        last = (bool(step.group["nesterov"]),) if "nesterov" in step.group else ()
        _OPERATIONS[type(step.optimizer).__name__](*tensors, *common, *last)

    def _tensors(self) -> list[Tensor | None]:
        """The parameter and its state, in the order of the operation's arguments."""
        state, names = self._step.state, list(self._step.storages)
        found: list[Tensor | None] = [self._step.param]
        with_scales = {"SparseSGD": 1, "SparseAdamW": 2, "RowWiseAdagrad": 0}[type(self._step.optimizer).__name__]
        for place in range(with_scales):
            name = names[place] if place < len(names) else ""
            found += [state.get(name), state.get(name + SCALE_SUFFIX)]
        if type(self._step.optimizer).__name__ == "SparseSGD":
            return found
        return [*found, state[names[with_scales]] if with_scales < len(names) else None]


def _number(step: RowStep, device: torch.device) -> Tensor:
    """The number of the step, () int64 on the device."""
    if step.group["capturable"]:
        return step.state["step"].to(torch.int64)
    if capturing(device):
        raise RuntimeError(
            f"{type(step.optimizer).__name__}(capturable=False) counts its steps on the host, so that a CUDA graph "
            "would take the same one for ever; give capturable=True."
        )
    return torch.full((), step.step, dtype=torch.int64, device=device)


def _options(step: RowStep, device: torch.device) -> Tensor:
    """The numbers of a rule, float64 on the device: the same tensor in every step, written where one changes."""
    group: dict[str, Any] = step.group
    names = {"SparseSGD": ("lr", "momentum", "weight_decay"), "RowWiseAdagrad": ("lr", "weight_decay", "eps")}
    given = [group[name] for name in names.get(type(step.optimizer).__name__, ("lr", "weight_decay", "eps"))]
    given += group.get("betas", ())
    values = [0.0 if isinstance(value, Tensor) else float(value) for value in given]
    kept = step.optimizer.__dict__.setdefault("_device_options", {})
    key = (id(group), device)
    if key not in kept:
        kept[key] = (values, torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True))
    elif kept[key][0] != values:
        kept[key] = (values, kept[key][1].copy_(torch.tensor(values, dtype=torch.float64), non_blocking=True))
    found: Tensor = kept[key][1]
    for place, value in enumerate(given):
        if isinstance(value, Tensor):
            found[place].copy_(value, non_blocking=True)
    return found
