"""Starts the kernels of the row updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.gpu import update
from lightning_pfc.kernels.gpu.calls import blocks
from lightning_pfc.kernels.gpu.layout import written_whole
from lightning_pfc.kernels.launching import launch
from lightning_pfc.kernels.tiles import row_tile
from lightning_pfc.kernels.unit_rows import NORM_EPS

_LEVELS = {torch.int8: 127, torch.uint8: 255}


def _start(
    kernel: Any,
    tensors: Sequence[Tensor | None],
    grad: Tensor,
    index: Tensor | None,
    count: Tensor | None,
    options: Tensor,
    step: Tensor,
    first_row: int,
    seed: Sequence[int],
    **constants: Any,
) -> None:
    weight = tensors[0]
    assert weight is not None
    width = weight[0].numel() if weight.shape[0] else 1
    tile = row_tile(width, 3)
    given = [weight if tensor is None else written_whole("a row's state", tensor) for tensor in tensors]
    grad, options, index = grad.contiguous(), options.contiguous(), None if index is None else index.contiguous()
    launch(
        kernel, (blocks(grad.shape[0], tile.rows),), *given, grad, weight if index is None else index,
        step if count is None else count, options, step, first_row, *seed, grad.shape[0], width, NORM_EPS,
        HAS_INDEX=index is not None, HAS_COUNT=count is not None, ROWS=tile.rows, WIDTH=tile.columns,
        num_warps=tile.warps, **constants,
    )  # fmt: skip


def sgd_rows_(weight: Tensor, velocity: Tensor | None, scales: Tensor | None, *common: Any) -> None:
    """See :mod:`lightning_pfc.optim.row_kernels`."""
    *shared, projects, nesterov = common
    levels = 0 if velocity is None else _LEVELS.get(velocity.dtype, 0)
    _start(
        update.sgd_rows, (weight, velocity, scales), *shared, PROJECT=projects, NESTEROV=nesterov,
        HAS_MOMENTUM=velocity is not None, LEVELS=levels,
    )  # fmt: skip


def adamw_rows_(
    weight: Tensor,
    mean: Tensor,
    mean_scales: Tensor | None,
    square: Tensor,
    square_scales: Tensor | None,
    last: Tensor | None,
    *common: Any,
) -> None:
    """See :mod:`lightning_pfc.optim.row_kernels`."""
    *shared, projects = common
    _start(
        update.adamw_rows, (weight, mean, mean_scales, square, square_scales, last), *shared, PROJECT=projects,
        DECAY=last is not None, LEVELS=_LEVELS.get(mean.dtype, 0), SQUARE_LEVELS=_LEVELS.get(square.dtype, 0),
    )  # fmt: skip


def adagrad_rows_(weight: Tensor, total: Tensor, *common: Any) -> None:
    """See :mod:`lightning_pfc.optim.row_kernels`."""
    *shared, projects = common
    _start(update.adagrad_rows, (weight, total), *shared, PROJECT=projects)
