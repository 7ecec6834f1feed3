"""Starts the kernels of the softmax: shapes to grids, tiles from the table."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.kernels.gpu import exponentials, rows, targets
from lightning_pfc.kernels.gpu.layout import side_by_side, written_rows, written_whole
from lightning_pfc.kernels.launching import launch, launched
from lightning_pfc.kernels.targets import MOST_COMPARED, links_by_sorting
from lightning_pfc.kernels.tiles import chip_of, power_of_two, row_tile, score_tile, splits
from lightning_pfc.kernels.unit_rows import NORM_EPS


def blocks(number: int, size: int) -> int:
    """How many blocks of ``size`` hold ``number``."""
    return -(-number // size)


def gather_normalize_round(
    weight: Tensor, index: Tensor | None, dtype: torch.dtype, normalize: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`lightning_pfc.kernels.unit_rows.gather_normalize_round`."""
    weight, index = side_by_side(weight), None if index is None else index.contiguous()
    count, width = weight.shape[0] if index is None else index.shape[0], weight.shape[1]
    unit = torch.empty((count, width), dtype=dtype, device=weight.device)
    inverse = torch.empty((count,), dtype=torch.float32, device=weight.device)
    tile = row_tile(width)
    launch(
        rows.unit_rows, (blocks(count, tile.rows),), weight, index if index is not None else weight, unit, inverse,
        count, width, weight.stride(0), NORM_EPS, HAS_INDEX=index is not None, NORMALIZE=normalize,
        ROWS=tile.rows, WIDTH=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return unit, inverse


def project_rows_(grad: Tensor, weight: Tensor, index: Tensor | None) -> None:
    """See :func:`lightning_pfc.kernels.unit_rows.project_rows_`."""
    grad, weight = written_whole("grad", grad), side_by_side(weight)
    index = None if index is None else index.contiguous()
    count, width = grad.shape
    tile = row_tile(width, 2)
    launch(
        rows.project_rows, (blocks(count, tile.rows),), grad, weight, index if index is not None else weight, count,
        width, weight.stride(0), NORM_EPS, HAS_INDEX=index is not None, ROWS=tile.rows, WIDTH=tile.columns,
        num_warps=tile.warps,
    )  # fmt: skip


def exponentials_(
    scores: Tensor,
    out: Tensor,
    scale: float,
    reference: float,
    target_columns: Tensor,
    offsets: Tensor | None,
    first: int,
) -> Tensor:
    """See :func:`lightning_pfc.kernels.exponentials.exponentials_`."""
    scores, out, target_columns = side_by_side(scores), written_rows("out", out), target_columns.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    batch, columns = scores.shape
    chip = chip_of(scores.device)
    tile = score_tile(chip, batch)
    row_blocks, column_tiles = blocks(batch, tile.rows), blocks(columns, tile.columns)
    parts = splits(chip, row_blocks, column_tiles)
    tiles = blocks(column_tiles, parts)
    parts = max(1, blocks(column_tiles, tiles)) if columns else 1
    sums = torch.empty((batch, parts), dtype=torch.float32, device=scores.device)
    launch(
        exponentials.exponentials, (row_blocks, parts), scores, out, sums, target_columns,
        scores if offsets is None else offsets, scale, reference, first, batch, columns, scores.stride(0),
        out.stride(0), tiles, parts, HAS_OFFSETS=offsets is not None, TARGETS=target_columns.shape[1], ROWS=tile.rows,
        COLUMNS=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    if parts == 1:
        return sums[:, 0]
    launched("sum")
    return sums.sum(1)


def target_cosines(x: Tensor, weight: Tensor, index: Tensor | None, target_columns: Tensor, normalize: bool) -> Tensor:
    """See :func:`lightning_pfc.kernels.targets.target_cosines`."""
    x, weight, target_columns = side_by_side(x), side_by_side(weight), target_columns.contiguous()
    index = None if index is None else index.contiguous()
    batch, each = target_columns.shape
    width = weight.shape[1]
    cosines = torch.empty((batch, each), dtype=torch.float32, device=x.device)
    tile = row_tile(width, 2)
    launch(
        targets.target_cosines, (blocks(batch * each, tile.rows),), x, weight,
        target_columns if index is None else index, target_columns, cosines, batch * each, each, width, x.stride(0),
        weight.stride(0), NORM_EPS, HAS_INDEX=index is not None, NORMALIZE=normalize, ROWS=tile.rows,
        WIDTH=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return cosines


def target_gradients_(
    x: Tensor,
    weight: Tensor,
    index: Tensor | None,
    target_columns: Tensor,
    grad: Tensor,
    x_grad: Tensor | None,
    row_grad: Tensor | None,
    normalize: bool,
    first: int,
    following: Tensor | None,
) -> None:
    """See :func:`lightning_pfc.kernels.targets.target_gradients_`."""
    x, weight, target_columns = side_by_side(x), side_by_side(weight), target_columns.contiguous()
    index, grad = None if index is None else index.contiguous(), grad.contiguous()
    batch, each = target_columns.shape
    entries, width = batch * each, weight.shape[1]
    if x_grad is not None:
        x_grad = written_rows("x_grad", x_grad)
        tile = row_tile(width, 2)
        launch(
            targets.embedding_gradients, (blocks(batch, tile.rows),), weight,
            target_columns if index is None else index, target_columns, grad, x_grad, batch, each, width,
            weight.stride(0), x_grad.stride(0), NORM_EPS, HAS_INDEX=index is not None, NORMALIZE=normalize,
            ROWS=tile.rows, WIDTH=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    if row_grad is not None:
        row_grad = written_rows("row_grad", row_grad)
        following = link_equal(target_columns) if following is None else following.contiguous()
        launch(
            targets.center_gradients, (entries,), x, target_columns, grad, following, row_grad, first,
            row_grad.shape[0], entries, each, width, x.stride(0), row_grad.stride(0), WIDTH=power_of_two(width),
            num_warps=4,
        )  # fmt: skip


def link_equal(target_columns: Tensor) -> Tensor:
    """See :func:`lightning_pfc.kernels.targets.link_equal`."""
    target_columns, entries = target_columns.contiguous(), target_columns.numel()
    if entries > MOST_COMPARED:
        launched("sort")
        return links_by_sorting(target_columns)
    following = torch.empty((entries,), dtype=torch.int32, device=target_columns.device)
    launch(
        targets.link_equal, (blocks(entries, 16),), target_columns, following, entries, ROWS=16, COLUMNS=128,
        num_warps=4,
    )  # fmt: skip
    return following
