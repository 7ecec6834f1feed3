"""Exponentials of scores and their sums, in one pass; the scores of targets are left out."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.rounding import nearest


@triton.jit
def exponentials(
    scores,
    out,
    sums,
    targets,
    offsets,
    scale,
    reference,
    first,
    num_rows,
    num_columns,
    score_stride,
    out_stride,
    tiles,
    num_splits,
    HAS_OFFSETS: tl.constexpr,
    TARGETS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``out = exp(scale * scores + offsets - reference)``, 0 at targets; ``sums[row, split]`` of what was written.

    Targets are counted from ``first`` columns before the first one.

    A program has ROWS rows and ``tiles`` tiles of COLUMNS columns, so what it adds up comes in a fixed order.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    live = rows < num_rows
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(tiles):
        columns = (split * tiles + tile).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        inside = live[:, None] & (columns < num_columns)[None, :]
        places = rows[:, None] * score_stride + columns[None, :]
        logits = tl.load(scores + places, mask=inside, other=0.0).to(tl.float32) * scale
        if HAS_OFFSETS:
            logits += tl.load(offsets + columns, mask=columns < num_columns, other=0.0)[None, :]
        kept = inside
        for p in tl.static_range(TARGETS):
            target = tl.load(targets + rows * TARGETS + p, mask=live, other=-1)
            kept = kept & (columns[None, :] != (target - first)[:, None])
        values = nearest(tl.where(kept, tl.exp(logits - reference), 0.0), out.dtype.element_ty)
        tl.store(out + rows[:, None] * out_stride + columns[None, :], values, mask=inside)
        total += tl.sum(values.to(tl.float32), 1)
    tl.store(sums + rows * num_splits + split, total, mask=live)
