"""One optimizer step of sampled rows as one operation: the radial part taken out, the rule applied, rows rounded.

The twins are the plain torch functions that the kernels are compared with, built from the same rules and storages as
the optimizers' own path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.choice import planted
from lightning_pfc.kernels.library import operation
from lightning_pfc.kernels.planted import numbers
from lightning_pfc.kernels.unit_rows import inverse_norms, project
from lightning_pfc.keyed_random.rounding_noise import RowNoise
from lightning_pfc.optim.row_formats import SCALE_SUFFIX, noise_of, row_width, storage_of, weight_storage
from lightning_pfc.optim.row_kernel_rules import adagrad_, adamw_, sgd_
from lightning_pfc.optim.rows import RowChunk


def _step_rows(
    weight: Tensor,
    states: Sequence[tuple[Tensor | None, Tensor | None]],
    grad: Tensor,
    index: Tensor | None,
    count: Tensor | None,
    step: Tensor,
    first_row: int,
    seed: Sequence[int],
    projects: bool,
    rule: Callable[..., None],
) -> None:
    """Read rows and states, apply ``rule(weight, *states, grad)``, round, write."""
    real = grad.shape[0] if count is None else int(count)
    if real == 0:
        return
    grad = grad[:real]
    chunk = RowChunk(slice(0, real) if index is None else index[:real], grad)
    noise = RowNoise(seed[0] | seed[1] << 32, int(step), row_width(weight.shape), weight.device)
    kept, tensors = weight_storage(weight.dtype), {"": weight}
    rows = kept.read("", tensors, chunk.rows)
    grad = grad.to(rows.dtype)
    if projects:
        grad = project(grad, rows, inverse_norms(rows))
    stored = [None if s is None else (storage_of(s.dtype), {"": s, SCALE_SUFFIX: scales}) for s, scales in states]
    values = [None if one is None else one[0].read("", one[1], chunk.rows) for one in stored]  # type: ignore[arg-type]
    rule(rows, *values, grad)
    kept.write("", tensors, chunk, rows, noise_of(noise, chunk, first_row, 0))
    for stream, (one, value) in enumerate(zip(stored, values, strict=True), 1):
        if one is not None and value is not None:
            one[0].write("", one[1], chunk, value, noise_of(noise, chunk, first_row, stream))  # type: ignore[arg-type]


def _sgd_twin(
    weight: Tensor,
    velocity: Tensor | None,
    scales: Tensor | None,
    grad: Tensor,
    index: Tensor | None,
    count: Tensor | None,
    options: Tensor,
    step: Tensor,
    first_row: int,
    seed: Sequence[int],
    projects: bool,
    nesterov: bool,
) -> None:
    lr, momentum, decay = options.tolist()

    def rule(rows: Tensor, moving: Tensor | None, grad: Tensor) -> None:
        sgd_(rows, moving, grad, lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov)

    _step_rows(weight, [(velocity, scales)], grad, index, count, step, first_row, seed, projects, rule)


def _adamw_twin(
    weight: Tensor,
    mean: Tensor,
    mean_scales: Tensor | None,
    square: Tensor,
    square_scales: Tensor | None,
    last: Tensor | None,
    grad: Tensor,
    index: Tensor | None,
    count: Tensor | None,
    options: Tensor,
    step: Tensor,
    first_row: int,
    seed: Sequence[int],
    projects: bool,
) -> None:
    lr, decay, eps, beta1, beta2 = options.tolist()
    now = int(step)

    def rule(rows: Tensor, first: Tensor, second: Tensor, before: Tensor | None, grad: Tensor) -> None:
        adamw_(rows, first, second, before, grad, now, lr=lr, weight_decay=decay, eps=eps, beta1=beta1, beta2=beta2)

    states = [(mean, mean_scales), (square, square_scales), (last, None)]
    _step_rows(weight, states, grad, index, count, step, first_row, seed, projects, rule)


def _adagrad_twin(
    weight: Tensor,
    total: Tensor,
    grad: Tensor,
    index: Tensor | None,
    count: Tensor | None,
    options: Tensor,
    step: Tensor,
    first_row: int,
    seed: Sequence[int],
    projects: bool,
) -> None:
    lr, decay, eps = options.tolist()

    def rule(rows: Tensor, sums: Tensor, grad: Tensor) -> None:
        adagrad_(rows, sums, grad, lr=lr, weight_decay=decay, eps=eps)

    _step_rows(weight, [(total, None)], grad, index, count, step, first_row, seed, projects, rule)


def _fake(*args: Any) -> None:
    return None


_COMMON = (
    "Tensor grad, Tensor? index, Tensor? count, Tensor options, Tensor step, int first_row, int[] seed, bool projects"
)
_CALLS = "lightning_pfc.kernels.gpu.updating"

sgd_rows_ = operation(
    f"sgd_rows_(Tensor(a!) weight, Tensor(b!)? velocity, Tensor(c!)? scales, {_COMMON}, bool nesterov) -> ()",
    _sgd_twin,
    _fake,
    f"{_CALLS}:sgd_rows_",
    launches=1,
)
"""SGD. ``options`` is (3,) float64 on the device of the rows: lr, momentum, weight decay. ``velocity`` is float32,
bfloat16, or int8 with ``scales``; None without momentum. For all three operations:

Args:
    weight: (c, D) float32 or bfloat16, contiguous; written where sampled.
    grad: (K, D) floating, of the rows, or of the unit rows with ``projects``.
    index: (K,) int64, distinct rows; None for all c in order.
    count: () int64 on the device, how many leading entries are real; None for all.
    step: () int64 on the device, the number of this step from 1.
    first_row: the global number of row 0, which the random rounding depends on.
    seed: low and high 32 bits.
    projects: whether ``grad`` is that of the unit rows.
"""

adamw_rows_ = operation(
    "adamw_rows_(Tensor(a!) weight, Tensor(b!) mean, Tensor(c!)? mean_scales, Tensor(d!) square,"
    f" Tensor(e!)? square_scales, Tensor(f!)? last, {_COMMON}) -> ()",
    _adamw_twin,
    _fake,
    f"{_CALLS}:adamw_rows_",
    launches=1,
)
"""AdamW. ``options`` is (5,) float64: lr, weight decay, eps, beta1, beta2. With ``last`` (c,) float32, moments decay
over missed steps."""

adagrad_rows_ = operation(
    f"adagrad_rows_(Tensor(a!) weight, Tensor(b!) total, {_COMMON}) -> ()",
    _adagrad_twin,
    _fake,
    f"{_CALLS}:adagrad_rows_",
    launches=1,
)
"""Adagrad with one number a row, ``total`` (c,) float32. ``options`` is (3,) float64: lr, weight decay, eps."""


def _planted_common(device: torch.device, options: list[float]) -> tuple[Any, ...]:
    """Gradient (20, 72) of every other row of 40, 17 of them real, and the rest of what the operations share."""
    index, count = torch.arange(20, device=device) * 2, torch.tensor(17, device=device)
    values = torch.tensor(options, dtype=torch.float64, device=device)
    return numbers(device, 20, 72), index, count, values, torch.tensor(3, device=device), 7, [1, 2], True


@planted("sgd_rows_")
def _planted_sgd(device: torch.device) -> list[tuple[Any, ...]]:
    weight, common = numbers(device, 40, 72) * 2, _planted_common(device, [0.1, 0.9, 1e-3])
    whole, codes, scales = numbers(device, 40, 72), (numbers(device, 40, 72) * 127).to(torch.int8), weight.abs().amax(1)
    return [
        (weight, whole, None, *common, False),
        (weight.bfloat16(), whole.bfloat16(), None, *common, True),
        (weight, codes, scales, *common, False),
        (weight, None, None, *common, False),
    ]


@planted("adamw_rows_")
def _planted_adamw(device: torch.device) -> list[tuple[Any, ...]]:
    weight, common = numbers(device, 40, 72) * 2, _planted_common(device, [0.1, 1e-2, 1e-8, 0.9, 0.999])
    mean, square = numbers(device, 40, 72), numbers(device, 40, 72).square()
    signed, roots = (mean * 127).to(torch.int8), (square * 254 + 1).to(torch.uint8)
    scales = weight.abs().amax(1)
    return [
        (weight, mean, None, square, None, None, *common),
        (weight.bfloat16(), mean.bfloat16(), None, square.bfloat16(), None, torch.ones_like(scales), *common),
        (weight, signed, scales, roots, scales.clone(), None, *common),
    ]


@planted("adagrad_rows_")
def _planted_adagrad(device: torch.device) -> list[tuple[Any, ...]]:
    weight, common = numbers(device, 40, 72) * 2, _planted_common(device, [0.1, 1e-3, 1e-8])
    return [(kept, numbers(device, 40).square(), *common) for kept in (weight, weight.bfloat16())]
